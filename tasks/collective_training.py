"""The steps of a job that trains by XGBoost's own collective, from agreement to the card."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from prefect.logging import get_run_logger
from pydantic import JsonValue

from prefect_federated.adapters.xgboost.events import BOOSTER
from prefect_federated.adapters.xgboost.measuring import EXPLANATIONS_LEAVE
from prefect_federated.errors import ConfigurationError, QuorumNotReached, SitesDisagree
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.matching import HashedIds, HashedMeeting
from prefect_federated.tabular.saved import Fitted
from prefect_federated.tabular.schema import Schema
from prefect_federated.tasks.collective import Boosting
from prefect_federated.tasks.collective_group import check_can_carry
from prefect_federated.tasks.collective_job import CollectiveJob
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.snapshots import State, restore
from prefect_federated.tasks.tabular import FittedRef, Tabular

_SCHEMA = "schema"


class CollectiveTraining:
    """The steps of one such job.

    Args:
        fed: The running federation.
        job: The job's parameters.
        group: The column of each row's query, for ranking.
        key: The column by which rows are matched, where sites have different columns.

    Raises:
        ConfigurationError: a parameter is wrong, or collective calls cannot be carried here.
    """

    def __init__(
        self, fed: Federation, job: CollectiveJob, *, group: str | None = None,
        key: str | None = None,
    ) -> None:  # fmt: skip
        check_can_carry(fed)
        job.parameters(classes=3)
        self.fed, self.job = fed, job
        self.tabular = Tabular(
            fed, job, objective=job.objective, needs=("xgboost",), group=group, key=key
        )
        self.sites: list[str] = []
        """The sites by rank."""
        self._parameters: dict[str, JsonValue] = {}
        self._more: dict[str, JsonValue] = {}
        self._model: Tensors = {}
        self._state: State | None = None
        self._kept: dict[str, Tensors] = {}
        self._rounds = 0
        self._notes: list[str] = []

    def agree(self) -> None:
        """Has the sites agree on columns and classes, or on those of the job's snapshot.

        Raises:
            SitesDisagree: which site has what.
        """
        columns = self.tabular
        columns.agree()
        self._state = restore()
        if self._state is not None:
            told = np.asarray(self._state.extra[_SCHEMA]["json"]).tobytes()
            columns.go_on_with(Schema.model_validate_json(told))
        schema = columns.schema
        self._kept = {_SCHEMA: {"json": np.frombuffer(schema.model_dump_json().encode(), np.uint8)}}
        self.sites = sorted(columns.columns)
        self._parameters = self.job.parameters(len(schema.classes))
        tests = any(said.test_rows for said in columns.columns.values())
        self._more = {"parameters": self._parameters, "evaluated": "test" if tests else None}
        if self.job.early_stopping_rounds is not None:
            self._more |= {
                "evaluated": "validation", "validation_share": self.job.validation_share,
            }  # fmt: skip

    def label_first(self) -> None:
        """Gives rank 0 to the site with the label, and checks what column splits cannot do.

        Raises:
            SitesDisagree: there are categorical columns.
        """
        schema, columns = self.tabular.schema, self.tabular.columns
        (first,) = [site for site, said in columns.items() if said.label is not None]
        self.sites = [first, *(site for site in self.sites if site != first)]
        owners = {feature.name: s for s, said in columns.items() for feature in said.features}
        texts = [
            f"{feature.name} at {owners[feature.name]}"
            for feature in schema.features
            if feature.kind == "categorical"
        ]
        if texts:
            raise SitesDisagree(
                f"columns with categories: {', '.join(texts)}. XGBoost cannot yet train on them "
                "where sites have different columns. Name `features` without them, or give them "
                "as numbers in the dataset."
            )
        names = sorted(schema.names, key=lambda name: self.sites.index(owners[name]))
        self.tabular.order_features(names)
        self._more["names"] = list(names)

    def match(self) -> None:
        """Has the rows of all sites matched by their key, but where the job goes on: then they are.

        Another order of the rows would hold out others for early stopping, and draw others.

        Raises:
            SitesDisagree: there is none.
            ConfigurationError: a site has a key twice, or too few common rows for its policy, or
                has lost which they were.
            QuorumNotReached: a site does not answer.
        """
        heard: Tensors = {}
        for step in range(HashedIds.steps if self._state is None else 0):
            told = self._all_say("match", heard, step=step)
            heard = HashedMeeting().hear(step, told)
        rows = self._all_say("matched", heard)
        train, test = (int(number) for number in rows[self.sites[0]]["rows"])
        columns = self.tabular.columns
        had = "; ".join(
            f"{site} has {columns[site].train_rows:,} and {columns[site].test_rows:,}"
            for site in self.sites
        )
        for site in self.sites:
            said = columns[site]
            columns[site] = said.model_copy(update={"train_rows": train, "test_rows": test})
        self._notes.append(
            f"Rows are matched by '{self.tabular.question.key}': {train:,} to train on and "
            f"{test:,} to measure on are at all sites ({had})."
        )
        get_run_logger().info("%d rows to train on are at all sites", train)

    def train(self) -> None:
        """Has all rounds trained; see `Boosting.train`."""
        boosting = Boosting(
            self.fed, self.job, self.tabular.config(**self._more), self.sites,
            len(self.tabular.schema.features), state=self._state, kept=self._kept,
        )  # fmt: skip
        raw = boosting.train()
        self._model = {BOOSTER: np.frombuffer(raw, np.uint8)}
        keeps_best = self.job.early_stopping_rounds is not None and boosting.best_round is not None
        self._rounds = boosting.best_round if keeps_best else self.job.rounds  # type: ignore[assignment]
        self._notes += self._told_of(boosting)
        if boosting.measured:
            self.tabular.measured({self.sites[0]: boosting.measured})

    def measure(self, *, at_each_site: bool = True) -> None:
        """Measures the model at each site, and one of each site's own.

        Args:
            at_each_site: False where the training has measured it already.
        """
        if at_each_site:
            self.tabular.evaluate(self._model, **self._more)
        patience = self.job.early_stopping_rounds or 0
        own = {**self._more, "rounds": self.job.rounds, "early_stopping_rounds": patience}
        self.tabular.alone(**own)

    def _told_of(self, boosting: Boosting) -> Iterator[str]:
        """Yields what a person must know of the rounds: who was away, and which are kept."""
        kept = boosting.present[: self._rounds]
        for site in sorted({*self.sites, *(each for sites in kept for each in sites)}):
            number = sum(site in sites for sites in kept)
            if number < len(kept):
                yield f"{site} has grown trees in {number} of {len(kept)} rounds."
        if self.job.early_stopping_rounds is not None:
            metric = self.job.eval_metric[-1] if self.job.eval_metric else "the objective's metric"
            yield (
                f"Early stopping by {metric} of {self.job.validation_share:.0%} of the training "
                f"rows, which no tree was grown on: round {self._rounds} of "
                f"{len(boosting.present)} is kept."
            )

    def publish(self, leaves: Sequence[str], notes: Sequence[str] = ()) -> FittedRef:
        """Writes the model and its card, and returns where they are."""
        raw = np.asarray(self._model[BOOSTER]).tobytes()
        return self.tabular.publish(
            Fitted("xgboost", {"model.ubj": raw}),
            rounds=self._rounds,
            parameters=self._parameters,
            leaves=[*leaves, *([EXPLANATIONS_LEAVE] if self._explains else [])],
            notes=[*notes, *self._notes],
            pictures=self._pictures(),
        )

    @property
    def _explains(self) -> bool:
        return self.job.explain and self.fed.can("explain")

    def _pictures(self) -> dict[str, bytes]:
        try:
            from prefect_federated.adapters.xgboost import pictures
        except ModuleNotFoundError:
            get_run_logger().info("no pictures of the model: install prefect-federated[plot]")
            return {}
        gain = pictures.gain_of(self._model[BOOSTER])
        made = {"gain": pictures.gain_png(gain)} if gain else {}
        if self._explains:
            replies = self.fed.send(
                "explain", self._model, sites=self.sites, config=self.tabular.config(**self._more),
                quorum=0, late_weight=0, same_tensors=False,
            )  # fmt: skip
            updates = [reply for reply in replies if isinstance(reply, Update)]
            updates.sort(key=lambda update: update.site)
            told = pictures.explained(update.tensors for update in updates)
            if told is not None:
                made["shap"] = pictures.shap_png(self.tabular.schema.names, told)
        return made

    def _all_say(self, kind: str, model: Tensors, **more: JsonValue) -> Mapping[str, Tensors]:
        config = self.tabular.config(ranks=list(self.sites), **more)
        replies = self.fed.send(
            kind, model or None, sites=self.sites, config=config, same_tensors=False, quorum=0
        )
        told: dict[str, Tensors] = {}
        failed: dict[str, str] = {}
        for reply in replies:
            if isinstance(reply, Update):
                told[reply.site] = reply.tensors
            else:
                failed[reply.site] = reply.reason
        if failed:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in failed.items())
            is_wrong = any(reason.startswith("ConfigurationError") for reason in failed.values())
            error = ConfigurationError if is_wrong else QuorumNotReached
            raise error(f"all sites have to match their rows, and not all can: {reasons}")
        return {site: told[site] for site in self.sites}
