"""The steps of a k-means job: agree, encode, seed, Lloyd's rounds, publish.

The arithmetic is in `prefect_federated.kmeans`; here it meets the sites and the snapshots.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from prefect_federated.curves import Curve
from prefect_federated.errors import UpdateRejected
from prefect_federated.kmeans.cells import Cells
from prefect_federated.kmeans.estimator import estimator_of
from prefect_federated.kmeans.report import own_units, tables
from prefect_federated.kmeans.search import Search
from prefect_federated.kmeans.seeding import seeds
from prefect_federated.messages import JsonValue, Tensors, Update
from prefect_federated.tabular.answers import numbers_in
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.pipelines import (
    check_installed,
    encoding_in,
    encoding_tensors,
    missing_notes,
    pipeline_files,
)
from prefect_federated.tasks.snapshots import State, restore, snapshot
from prefect_federated.tasks.tabular import FittedRef, Tabular, TabularJob

LEAVES = (
    "for each column the number of values, their mean and squared deviations, and categories",
    "the means of groups of training rows, each of at least small_cell rows or five, and their "
    "sizes",
    "in each round and restart the inertia, and for each centre 0 or at least small_cell rows, and "
    "their sum",
    "the centres' metrics on the site's own test rows",
)


class KMeansJob(TabularJob):
    """The parameters of a k-means job."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "prefect_federated.adapters.sklearn.saved",
        "prefect_federated.adapters.sklearn.preprocessing",
        "sklearn.cluster",
    )

    clusters: int = Field(ge=1, le=1000, description="How many clusters.")
    restarts: int = Field(
        default=10,
        ge=1,
        le=100,
        description="First centres to begin with; all are computed in the same rounds, and the "
        "best end is taken.",
    )
    scale: bool = Field(
        default=True, description="Whether numbers are scaled to a standard deviation of 1."
    )
    tolerance: float = Field(
        default=1e-6,
        ge=0,
        lt=1,
        description="A restart ends when its inertia falls by a smaller share in a round.",
    )
    rounds: int = Field(
        default=100, ge=1, le=10_000, description="Rounds of Lloyd's algorithm at most."
    )
    executor: str = Field(
        default="prefect_federated.kmeans.site",
        description="Executor that the sites run; the built-in one computes k-means.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )


class KMeansRef(FittedRef):
    """Where fitted clusters are, and what they are like.

    Args:
        inertia: After each round: of all sites' training rows, encoded, at the best centres.
        centers: For each cluster, feature -> value, in the features' own units; of a category, the
            share of its rows.
        cluster_rows: Site -> rows by cluster; 0 for fewer than its policy's small_cell, which are
            counted with a cluster nearby.
        rounds: Rounds that it took.
    """

    inertia: list[float]
    centers: list[dict[str, float]]
    cluster_rows: dict[str, list[int]]
    rounds: int


class Lloyd:
    """One job's steps.

    Args:
        fed: The running federation.
        job: The job's parameters.
    """

    def __init__(self, fed: Federation, job: KMeansJob) -> None:
        check_installed()
        self._fed, self._job = fed, job
        self._tabular = Tabular(fed, job, objective="none")
        self._tabular.agree()
        kept = restore()
        self._rounds = 0 if kept is None else kept.round
        self._answered: Sequence[str] = sorted(self._tabular.columns)
        if kept is None:
            self._encoding = self._tabular.fit_encoding(scale=job.scale)
            self._search = self._seeded()
        else:
            self._encoding = encoding_in(kept.extra["encoding"], self._tabular.schema)
            self._search = Search.restored(kept.extra["search"], job.tolerance)

    @property
    def is_done(self) -> bool:
        """Whether all restarts have ended, or the rounds have."""
        return self._search.is_done or self._rounds >= self._job.rounds

    def ask(self) -> None:
        """Asks for one round of sums at all restarts' centres, and moves the centres.

        Raises:
            QuorumNotReached: too few sites have answered.
            UpdateRejected: a site's sums do not fit.
        """
        self._rounds += 1
        asked = self._search.asked
        answers = {
            reply.site: Cells.of(reply.tensors, asked.shape, reply.site)
            for reply in self._asked("cells", {"centers": asked})
        }
        self._search.take(answers)
        best = {"centers": self._search.centers[self._search.best]}
        extra = {"search": self._search.tensors(), "encoding": encoding_tensors(self._encoding)}
        snapshot(State(best, self._rounds, extra))

    def publish(self) -> KMeansRef:
        """Has the centres measured, compares them with the sites' own, and writes them.

        Raises:
            SnapshotFailed: they could not be written.
        """
        search, job = self._search, self._job
        centers = search.centers[search.best]
        self._tabular.alone(**self._config(rounds=job.rounds, tolerance=job.tolerance))
        self._tabular.evaluate({"centers": centers}, **self._config())
        estimator = estimator_of(centers, search.curve[-1], self._rounds, job.restarts)
        shown = own_units(self._encoding, centers)
        rows = {
            site: [round(each) for each in counts]
            for site, counts in sorted(search.counts().items())
        }
        reference = self._tabular.publish(
            pipeline_files(self._encoding, estimator),
            rounds=self._rounds,
            parameters={"clusters": job.clusters, "restarts": job.restarts, "scale": job.scale},
            leaves=LEAVES,
            pictures=_pictures(search.curve),
            notes=missing_notes(self._tabular.columns, self._answered),
            tables=tables(shown, rows),
        )
        return KMeansRef(
            **reference.model_dump(),
            inertia=search.curve,
            centers=shown,
            cluster_rows=rows,
            rounds=self._rounds,
        )

    def _seeded(self) -> Search:
        config = {"clusters": self._job.clusters}
        points, weights = [], []
        columns = len(self._encoding.names)
        for reply in sorted(self._asked("groups", {}, **config), key=lambda each: each.site):
            found = len(reply.tensors.get("weights", ()))
            shapes = {"points": (found, columns), "weights": (found,)}
            its = numbers_in(
                reply.tensors, shapes, reply.site, not_negative=("weights",), of="the groups'"
            )
            if not (its["weights"] >= 1).all():
                raise UpdateRejected(f"site {reply.site!r}: it sent groups of no rows.")
            points.append(its["points"])
            weights.append(its["weights"])
        together, rows = np.concatenate(points), np.concatenate(weights)
        random = np.random.default_rng(self._job.seed)
        first = seeds(together, rows, self._job.clusters, self._job.restarts, random)
        return Search(first, together, rows, self._job.tolerance)

    def _asked(self, kind: str, centers: Tensors, **config: JsonValue) -> list[Update]:
        replies = self._fed.broadcast(
            kind, centers, sites=sorted(self._tabular.columns), config=self._config(**config),
            round=self._rounds, late_weight=0, same_tensors=False,
        )  # fmt: skip
        updates = [reply for reply in replies if isinstance(reply, Update)]
        self._answered = [update.site for update in updates]
        return updates

    def _config(self, **more: JsonValue) -> dict[str, JsonValue]:
        known = {"clusters": self._job.clusters, "restarts": self._job.restarts}
        return self._tabular.config(encoding=self._encoding.to_json(), **{**known, **more})


def _pictures(inertia: Sequence[float]) -> dict[str, bytes]:
    """Returns the inertia by round as a picture, where matplotlib is installed."""
    try:
        from prefect_federated.adapters.plot import curves_png
    except ImportError:
        return {}
    return {"inertia": curves_png([Curve("inertia", dict(enumerate(inertia, start=1)))])}
