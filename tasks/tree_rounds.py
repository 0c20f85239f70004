"""What jobs that grow trees share: the first score, rounds, early stopping, the end.

    with federation(job) as fed:
        trees = TreeRounds(fed, job)
        for number in trees:
            ...                       # ask the sites
            trees.done(model, answered)
        return trees.finish(leaves)

Early stopping looks at training rows that each site holds out for it: test rows are only measured
at the end, so that what the card says of them was not chosen by them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict, JsonValue

from prefect_federated.adapters.xgboost.measuring import EXPLANATIONS_LEAVE
from prefect_federated.adapters.xgboost.merge import BOOSTER, ROUNDS, check, empty
from prefect_federated.adapters.xgboost.parameters import (
    STOPS_BY,
    first_score,
    resolve,
)
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.schema import Schema
from prefect_federated.tabular.scores import is_better
from prefect_federated.tasks.choosing import Draw
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.snapshots import State, restore, snapshot
from prefect_federated.tasks.tabular import FittedRef, Tabular
from prefect_federated.tasks.tree_job import TreeJob

VALIDATION = "val_"
_PROGRESS = "progress"


class Progress(BaseModel):
    """What a job that grows trees must know to go on, beside its model.

    Args:
        schema_: The columns that its trees split; sites that are away now may have named others.
        base_score: The prediction that all trees start from.
        values: The metric of early stopping after each round; NaN where no site has measured it.
        ends: Boosting rounds in the model after each round.
        answered: Site -> rounds in which its trees came.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    schema_: Schema
    base_score: float
    values: list[float] = []
    ends: list[int] = []
    answered: dict[str, int] = {}


class TreeRounds:
    """The rounds of one job that grows trees, from its first state, or its snapshot, to its result.

    Args:
        fed: The running federation.
        job: The job's parameters.

    Raises:
        SitesDisagree: which site has what, what the others have, and what to do.
        QuorumNotReached: too few sites have answered.
    """

    def __init__(self, fed: Federation, job: TreeJob) -> None:
        self.fed, self.job = fed, job
        self.tabular = Tabular(
            fed, job, objective=job.objective, needs=("xgboost",), group=job.group
        )
        self.tabular.agree()
        restored = restore()
        self.state = State(model=empty()) if restored is None else restored
        """The job after the last round that is done."""
        kept = self.state.extra.get(_PROGRESS)
        if kept is None:
            self._progress = Progress(schema_=self.tabular.schema, base_score=self._first_score())
        else:
            self._progress = Progress.model_validate_json(kept[_PROGRESS].tobytes())
            self.tabular.go_on_with(self._progress.schema_)
        schema = self.tabular.schema
        self.features = len(schema.features)
        """Columns that trees may split."""
        self._metric = STOPS_BY[job.objective]
        self.parameters: dict[str, JsonValue] = {
            **resolve(
                job.mode, job.objective, job.xgboost, classes=len(schema.classes), eta=job.eta,
                max_depth=job.max_depth,
            ),
            "base_score": self._progress.base_score,
        }  # fmt: skip
        """XGBoost's parameters at all sites."""

    @property
    def number(self) -> int:
        """The round that is under way, counted from 1."""
        return self.state.round + 1

    @property
    def stops_early(self) -> bool:
        """Whether the rounds may end before their number."""
        return self.job.early_stopping_rounds is not None

    @property
    def best(self) -> int:
        """The round whose model is kept: the best by the held-out rows, or the last."""
        if not self.stops_early or not any(math.isfinite(each) for each in self._progress.values):
            return self.state.round
        best = 0
        for place, value in enumerate(self._progress.values):
            was = self._progress.values[best]
            if math.isfinite(value) and (
                not math.isfinite(was) or is_better(self._metric, value, was)
            ):
                best = place
        return best + 1

    def __iter__(self) -> Iterator[int]:
        """Yields the number of each round; the round ends with `done`."""
        while self._goes_on():
            number = self.number
            yield number
            if self.state.round != number:
                raise RuntimeError(f"round {number} was not ended by `trees.done(...)`.")

    def chosen(self, draw: Draw) -> Sequence[str]:
        """Chooses the sites that have agreed on the columns: one that comes later takes no part."""
        return [site for site in draw.sites if site in self.tabular.columns]

    def config(self) -> dict[str, JsonValue]:
        """Returns the config of the sites' tasks."""
        return self.tabular.config(
            parameters=self.parameters,
            steps=self.job.trees_per_round,
            rounds=self._most_boosted(),
            early_stopping_rounds=self.job.early_stopping_rounds or 0,
            validation_share=self.job.validation_share if self.stops_early else 0.0,
        )

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Notes what the sites have measured of the model as the last round has left it.

        Args:
            metrics: Means over the sites, weighted by held-out rows: names begin with "val_".
        """
        if self.stops_early and len(self._progress.values) < self.state.round:
            self._progress.values.append(metrics.get(VALIDATION + self._metric, math.nan))

    def validate(self) -> None:
        """Has the sites measure the model on the rows that are held out for early stopping."""
        if not self.stops_early or len(self._progress.values) >= self.state.round:
            return
        replies = self.fed.broadcast(
            "validate", self.state.model, sites=self.chosen, round=self.state.round,
            config=self.config(), late_weight=0, same_tensors=False,
        )  # fmt: skip
        for _ in replies:
            pass
        self.measured({} if replies.report is None else replies.report.metrics)

    def checked(self, model: Tensors, site: str) -> Tensors:
        """Returns a model that a site has sent whole, if it is a booster of trees.

        Args:
            model: The model.
            site: Who sent it.

        Raises:
            UpdateRejected: it is not, or its rounds have not as many names.
        """
        return check(model, self.features, site)

    def done(self, model: Tensors, answered: Iterable[str]) -> None:
        """Ends a round with its new model, and begins to write it as a snapshot.

        Args:
            model: The global model after the round.
            answered: The sites whose trees are in it.

        Raises:
            SnapshotFailed: the snapshot before could not be written.
            StaleController: a newer attempt of the job has taken over.
        """
        progress = self._progress
        progress.ends.append(len(model[ROUNDS]))
        for site in answered:
            progress.answered[site] = progress.answered.get(site, 0) + 1
        kept = np.frombuffer(progress.model_dump_json().encode(), np.uint8)
        self.state = State(model, self.number, {_PROGRESS: {_PROGRESS: kept}})
        snapshot(self.state)

    def finish(self, leaves: Sequence[str], notes: Sequence[str] = ()) -> FittedRef:
        """Measures and explains the model at all sites, publishes it, and returns where it is.

        Args:
            leaves: What has left each site, in sentences.
            notes: What else a person should know.

        Raises:
            SnapshotFailed: it could not be written.
        """
        from prefect_federated.adapters.xgboost.saved import MODEL, save

        self.validate()
        kept = self.best
        rounds = self._progress.ends[kept - 1]
        fitted = save(self.state.model[BOOSTER], rounds)
        model = {**self.state.model, BOOSTER: np.frombuffer(fitted.files[MODEL], np.uint8)}
        model[ROUNDS] = model[ROUNDS][:rounds]
        config = self.config()
        self.tabular.evaluate(model, **config)
        self.tabular.alone(**config)
        told = [*notes, *self._missing()]
        if self.stops_early:
            values = ", ".join(f"{value:.5g}" for value in self._progress.values)
            told.append(
                f"Early stopping by {self._metric} of {self.job.validation_share:.0%} of each "
                f"site's training rows, which no tree was grown on: round {kept} of "
                f"{self.state.round} is kept. By round: {values}."
            )
            get_run_logger().info("round %d of %d is kept", kept, self.state.round)
        return self.tabular.publish(
            fitted,
            rounds=kept,
            parameters={**self.parameters, "trees_per_round": self.job.trees_per_round},
            leaves=[*leaves, *self._explanations_leave()],
            pictures=self._pictures(model, config),
            notes=told,
        )

    def _most_boosted(self) -> int:
        """Returns how often one row's prediction may be boosted in all."""
        visits = len(self.tabular.columns) if self.job.mode == "cyclic" else 1
        return self.job.rounds * self.job.trees_per_round * visits

    def _missing(self) -> list[str]:
        answered, rounds = self._progress.answered, self.state.round
        sites = sorted(answered.keys() | self.tabular.columns.keys())
        return [
            f"{site} has grown trees in {answered.get(site, 0)} of {rounds} rounds"
            + ("." if site in self.tabular.columns else ", and was away at the end.")
            for site in sites
            if answered.get(site, 0) < rounds or site not in self.tabular.columns
        ]

    def _explanations_leave(self) -> list[str]:
        told = ["The sum and the number of its labels, by which all trees start from one score."]
        if self.job.explain:
            told.append(EXPLANATIONS_LEAVE)
        return told

    def _pictures(self, model: Tensors, config: dict[str, JsonValue]) -> dict[str, bytes]:
        try:
            from prefect_federated.adapters.xgboost.pictures import (
                explained,
                gain_of,
                gain_png,
                shap_png,
            )
        except ModuleNotFoundError:
            get_run_logger().info("no pictures of the model: install prefect-federated[plot]")
            return {}
        gain = gain_of(model[BOOSTER])
        pictures = {"gain": gain_png(gain)} if gain else {}
        if self.job.explain:
            replies = self.fed.broadcast(
                "explain", model, sites=self.chosen, config=config, quorum=0, late_weight=0,
                same_tensors=False,
            )  # fmt: skip
            updates = sorted(
                (each for each in replies if isinstance(each, Update)), key=lambda u: u.site
            )
            told = explained(update.tensors for update in updates)
            if told is not None:
                pictures["shap"] = shap_png(self.tabular.schema.names, told)
        return pictures

    def _first_score(self) -> float:
        replies = self.fed.broadcast(
            "labels", sites=self.chosen, config=self.tabular.config(), late_weight=0,
            same_tensors=False,
        )  # fmt: skip
        told = [reply.tensors for reply in replies if isinstance(reply, Update)]
        count = math.fsum(float(each["count"][0]) for each in told)
        total = math.fsum(float(each["sum"][0]) for each in told)
        return first_score(self.job.objective, count, total)

    def _goes_on(self) -> bool:
        if self.job.mode == "cyclic":  # elsewhere the sites measure before they train
            self.validate()
        values, patience = self._progress.values, self.job.early_stopping_rounds
        is_enough = patience is not None and len(values) - self.best >= patience
        return self.state.round < self.job.rounds and not is_enough
