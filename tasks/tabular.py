"""What the jobs that learn from sites' tables share: their parameters, and their common steps.

with federation(job) as fed:
    tabular = Tabular(fed, job, objective="binary", needs=("xgboost",))
    tabular.agree()
    ...
    tabular.alone(**settings)
    tabular.evaluate(model, **settings)
    return tabular.publish(fitted, rounds=..., parameters=..., leaves=...)
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, get_args

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, Field, JsonValue

from prefect_federated.errors import (
    ConfigurationError,
    QuorumNotReached,
    SitesDisagree,
)
from prefect_federated.messages import SiteFailure, Tensors, Update
from prefect_federated.tabular.card import ModelCard, SiteCard
from prefect_federated.tabular.encoding import Encoding, fit
from prefect_federated.tabular.question import Objective, TabularQuestion
from prefect_federated.tabular.rows import NEEDS, columns_in, config_of
from prefect_federated.tabular.saved import CARD, Fitted
from prefect_federated.tabular.schema import Schema, SiteColumns, agree
from prefect_federated.tasks.artifacts import key_of
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.snapshot_record import Row
from prefect_federated.tasks.storage import path_in_storage, put_result

PACKAGES = ("prefect-federated", "numpy")


class TabularJob(JobParameters):
    """The parameters of a job that learns from the sites' tables."""

    imports: ClassVar[tuple[str, ...]] = (
        "prefect_federated.datasets.csv_file",
        "prefect_federated.adapters.plot",
    )

    dataset: str = Field(
        min_length=1, description="The dataset's name, as the sites' datasets.yaml has it."
    )
    label: str | None = Field(default=None, description="Column to predict.")
    features: list[str] | None = Field(
        default=None, description="Columns to predict from; all others that may be used if empty."
    )
    train_split: str | None = Field(
        default=None, description="Split to train on; 'train', or the only one, if empty."
    )
    test_split: str | None = Field(
        default=None,
        description="Split to measure on; if empty, 'test' where there is one, else `test_share` "
        "of the rows, which are not trained on.",
    )
    test_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of each site's rows that is held out to measure on, where there is no "
        "split for it. 0: nothing is measured.",
    )
    compare_alone: bool = Field(
        default=True,
        description="At the end, have each site train a model of its own rows only, and compare.",
    )


class FittedRef(BaseModel):
    """Where a fitted model is, and how good.

    Args:
        path: The folder with its files and its card, in Prefect's result storage; with local
            storage, `prefect_federated.load_fitted(path)` gives the model.
        kind: "xgboost" or "sklearn".
        metrics: Means over the sites, weighted by test rows.
        sites: Those that took part: rows, metrics, and those of a model of their own.
        history: The job's table: a row a call to the sites.
    """

    path: str
    kind: str
    metrics: dict[str, float]
    sites: list[SiteCard]
    history: list[Row] = Field(default_factory=list)


class Tabular:
    """One job's dealings with the sites' tables.

    Args:
        fed: The running federation.
        job: The job's parameters.
        objective: What the label is.
        needs: Packages whose versions must be the same at all sites.
        key: The column by which rows of different sites are matched; None where they are not.
        group: The column of each row's query, for ranking.

    Raises:
        ConfigurationError: the objective needs a label, and there is none.
    """

    def __init__(
        self,
        fed: Federation,
        job: TabularJob,
        *,
        objective: str,
        needs: Sequence[str] = (),
        key: str | None = None,
        group: str | None = None,
    ) -> None:
        if objective not in get_args(Objective):
            raise ConfigurationError(
                f"there is no objective {objective!r}; there is {', '.join(get_args(Objective))}."
            )
        if objective != "none" and job.label is None:
            raise ConfigurationError(
                f"objective {objective!r} predicts a column; name it as the job's `label`."
            )
        if objective == "ranking" and group is None:
            raise ConfigurationError(
                "objective 'ranking' needs the column of each row's query; name it as `group`."
            )
        self.question = TabularQuestion(
            dataset=job.dataset,
            train=job.train_split,
            test=job.test_split,
            test_share=job.test_share,
            label=job.label if objective != "none" else None,
            features=None if job.features is None else tuple(job.features),
            key=key,
            objective=objective,
            group=group,
            seed=job.seed,
        )
        self.columns: dict[str, SiteColumns] = {}
        """Site -> what it has."""
        self._fed, self._job, self._needs = fed, job, list(needs)
        self._schema: Schema | None = None
        self._metrics: dict[str, Mapping[str, float]] = {}
        self._alone: dict[str, Mapping[str, float] | str] = {}
        self._federation: Mapping[str, float] = {}

    @property
    def schema(self) -> Schema:
        """What the sites agree on, once they have been asked."""
        if self._schema is None:
            raise RuntimeError("`agree()` comes first.")
        return self._schema

    @property
    def site_rows(self) -> dict[str, int]:
        """Site -> rows that it trains on."""
        return {site: said.train_rows for site, said in self.columns.items()}

    def agree(self) -> Schema:
        """Asks all sites what columns they have, and returns what all of them train on.

        Raises:
            SitesDisagree: which site has what, what the others have, and what to do.
            QuorumNotReached: too few sites have answered.
        """
        config: dict[str, JsonValue] = {**config_of(self.question, None), NEEDS: [*self._needs]}
        replies = self._fed.broadcast("columns", config=config, late_weight=0, same_tensors=False)
        failed: list[SiteFailure] = []
        try:
            for reply in replies:
                if isinstance(reply, Update):
                    self.columns[reply.site] = columns_in(reply)
                else:
                    failed.append(reply)
        except QuorumNotReached:
            reasons = {each.reason for each in failed}
            if len(failed) > 1 and len(reasons) == 1 and not self.columns:
                raise ConfigurationError(f"no site can take part: {reasons.pop()}") from None
            raise
        for each in failed:
            get_run_logger().warning("%s takes no part: %s", each.site, each.reason)
        self._schema = agree(self.columns, self.question)
        for note in self._schema.notes:
            get_run_logger().info("%s", note)
        return self._schema

    def go_on_with(self, schema: Schema) -> None:
        """Takes the schema of a snapshot in place of the one that the sites agree on now.

        A site that is away now may have named categories that no other has.

        Raises:
            SitesDisagree: a column of the snapshot is not at all sites any more.
        """
        lost = [name for name in schema.names if name not in self.schema.names]
        if lost:
            raise SitesDisagree(
                f"the job's model so far splits column {lost[0]!r}, which not all sites have any "
                "more. Bring it back there, or start a new job."
            )
        self._schema = schema

    def order_features(self, names: Sequence[str]) -> None:
        """Takes another order of the features, which that of the model's inputs is then."""
        by_name = {feature.name: feature for feature in self.schema.features}
        ordered = tuple(by_name[name] for name in names)
        self._schema = self.schema.model_copy(update={"features": ordered})

    def config(self, **more: JsonValue) -> dict[str, JsonValue]:
        """Returns the config that every later call to the sites takes."""
        return {**config_of(self.question, self.schema), **more}

    def fit_encoding(self, *, scale: bool = True) -> Encoding:
        """Asks all sites for their numbers' moments, and returns the encoding of all rows.

        Raises:
            QuorumNotReached: too few sites have answered.
            UpdateRejected: a site's moments do not fit.
        """
        replies = self._fed.broadcast(
            "moments", sites=sorted(self.columns), config=self.config(), late_weight=0,
            same_tensors=False,
        )  # fmt: skip
        moments = {reply.site: reply.tensors for reply in replies if isinstance(reply, Update)}
        return fit(self.schema, moments, scale=scale)

    def alone(self, **config: JsonValue) -> None:
        """Has each site train a model of its own rows only and measure it on its test rows.

        It does nothing where the job says so. A site that cannot, as one without the label, is
        shown with its reason.
        """
        if not self._job.compare_alone:
            return
        with_label = [
            site for site, said in sorted(self.columns.items())
            if said.label is not None or self.question.label is None
        ]  # fmt: skip
        self._alone = dict.fromkeys(self.columns.keys() - with_label, "the label is not there")
        replies = self._fed.broadcast(
            "alone", sites=with_label, config=self.config(**config), quorum=0,
            late_weight=0, same_tensors=False,
        )  # fmt: skip
        for reply in replies:
            self._alone[reply.site] = (
                reply.reason if isinstance(reply, SiteFailure) else dict(reply.metrics)
            )

    def evaluate(self, model: Tensors, **config: JsonValue) -> Mapping[str, float]:
        """Has each site measure a model on its test rows; returns the means, weighted by rows.

        The last one counts for the card.
        """
        if not self._job.test_share and not any(c.test_rows for c in self.columns.values()):
            return {}
        replies = self._fed.broadcast(
            "evaluate", model, sites=sorted(self.columns), config=self.config(**config), quorum=0,
            late_weight=0, same_tensors=False,
        )  # fmt: skip
        for reply in replies:
            if isinstance(reply, Update):
                self._metrics[reply.site] = dict(reply.metrics)
        self._federation = {} if replies.report is None else replies.report.metrics
        return self._federation

    def measured(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Takes metrics by site that were measured elsewhere, in place of `evaluate`."""
        self._metrics = dict(metrics)
        names = {name for its in metrics.values() for name in its}
        self._federation = {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> float:
        there = {site: its[name] for site, its in self._metrics.items() if name in its}
        rows = {s: max(self.columns[s].test_rows, 1) if s in self.columns else 1 for s in there}
        return sum(there[s] * rows[s] for s in there) / sum(rows.values())

    def publish(
        self,
        fitted: Fitted,
        *,
        rounds: int,
        parameters: Mapping[str, JsonValue],
        leaves: Sequence[str],
        pictures: Mapping[str, bytes] | None = None,
        notes: Sequence[str] = (),
        title: str | None = None,
        tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
    ) -> FittedRef:
        """Writes the model's files and its card, shows them, and returns where they are.

        Args:
            fitted: The model.
            rounds: How many it took.
            parameters: Of the training, for the card.
            leaves: What has left each site, in sentences.
            pictures: Name -> PNG.
            notes: What else a person should know.
            title: What it is; the flow's name if None.
            tables: Title -> a table for the card: a row of names, then the others.

        Raises:
            SnapshotFailed: a file could not be written.
        """
        flow = flow_run.flow_name or "model"
        run = str(flow_run.id or "simulated")
        card = ModelCard(
            kind=fitted.kind,
            title=title or f"{flow}: {self._job.label or self._job.dataset}",
            flow=flow,
            run=run,
            created=datetime.now(UTC),
            dataset=self._job.dataset,
            label=self.question.label,
            classes=list(self.schema.classes),
            features=list(self.schema.names),
            objective=self.question.objective,
            rounds=rounds,
            sites=[self._site(name) for name in sorted(self.columns)],
            metrics=dict(self._federation),
            parameters=dict(parameters),
            versions=self._versions(),
            leaves=list(leaves),
            notes=[*self.schema.notes, *notes],
            files=sorted(fitted.files),
            tables={name: [list(row) for row in its] for name, its in (tables or {}).items()},
        )
        folder = f"models/{run}"
        page = card.markdown()
        files = {**fitted.files, "card.md": page.encode()}
        files |= {f"{name}.png": content for name, content in (pictures or {}).items()}
        files[CARD] = card.model_dump_json(indent=2).encode()  # last: it says that all is there
        for name, content in files.items():
            put_result(f"{folder}/{name}", content)
        where = path_in_storage(f"{folder}/{CARD}").removesuffix(f"/{CARD}")
        self._show(flow, page, pictures or {}, where)
        return FittedRef(
            path=where,
            kind=fitted.kind,
            metrics=card.metrics,
            sites=card.sites,
            history=[dict(row) for row in self._fed.reporter.history],
        )

    def _site(self, name: str) -> SiteCard:
        said, alone = self.columns[name], self._alone.get(name, {})
        return SiteCard(
            name=name,
            train_rows=said.train_rows,
            test_rows=said.test_rows,
            metrics=dict(self._metrics.get(name, {})),
            alone={} if isinstance(alone, str) else dict(alone),
            alone_failed=alone if isinstance(alone, str) else None,
        )

    def _versions(self) -> dict[str, str]:
        found = {name: _version(name) for name in PACKAGES}
        for said in self.columns.values():
            found |= said.versions
        return {name: number for name, number in found.items() if number}

    def _show(self, flow: str, page: str, pictures: Mapping[str, bytes], where: str) -> None:
        key = key_of(flow).strip("-")
        shown = [
            f"\n![{name}](data:image/png;base64,{base64.b64encode(content).decode()})\n"
            for name, content in pictures.items()
        ]
        try:
            create_markdown_artifact(
                f"{page}\nFiles: `{where}`\n{''.join(shown)}",
                key=f"{key}-model",
                description="The model: its sites, how good it is, what has left each site",
            )
        except Exception:  # a job does not fail because its model could not be shown
            get_run_logger().warning("the model's card could not be shown", exc_info=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
