"""A small site for tests of its privacy: exact numbers by pandas and numpy, then `protect`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.histograms import with_outer
from prefect_federated.statistics.ledger import FOLDER, Ledger
from prefect_federated.statistics.protection import protect
from prefect_federated.statistics.request import Request, SiteTaskKind
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    CoMoments,
    FromSite,
    Histogram,
    SplitFromSite,
    Summary,
)

Edges = Mapping[str, Sequence[float]]
FIRST_NIGHT = datetime(2026, 11, 1, 2, 0, tzinfo=UTC)


def kind_of(values: "pd.Series[float]") -> Kind:
    if values.dtype == bool:
        return "boolean"
    return "numeric" if pd.api.types.is_numeric_dtype(values) else "categorical"


def summary_of(values: "pd.Series[float]", edges: Sequence[float] | None) -> Summary:
    there = values.dropna()
    missing = float(len(values) - len(there))
    if kind_of(values) == "categorical":
        counts = {str(name): float(n) for name, n in there.value_counts().items()}
        return Summary(count=float(len(there)), missing=missing, categories=counts)
    numbers = there.to_numpy(float)
    finite = numbers[np.isfinite(numbers)]
    histogram = None
    if edges is not None:
        counted = np.histogram(finite, edges)[0].astype(float).tolist()
        below, above = float((finite < edges[0]).sum()), float((finite > edges[-1]).sum())
        histogram = Histogram(
            edges=with_outer(np.array(edges, float)).tolist(), counts=[below, *counted, above]
        )
    some = bool(len(finite))
    return Summary(
        count=float(len(finite)),
        missing=missing,
        infinite=float(len(numbers) - len(finite)),
        sum=float(finite.sum()) if some else None,
        mean=float(finite.mean()) if some else None,
        variance=float(finite.var(ddof=1)) if len(finite) > 1 else None,
        std=float(finite.std(ddof=1)) if len(finite) > 1 else None,
        min=float(finite.min()) if some else None,
        max=float(finite.max()) if some else None,
        histogram=histogram,
    )


def co_moments_of(frame: pd.DataFrame) -> CoMoments:
    columns = [str(name) for name in frame if kind_of(frame[name]) != "categorical"]
    values = frame[columns].to_numpy(float)
    table: dict[str, list[list[float | None]]] = {"n": [], "mean": [], "m2": [], "m": []}
    for one in values.T:
        rows: dict[str, list[float | None]] = {name: [] for name in table}
        for other in values.T:
            both = np.isfinite(one) & np.isfinite(other)
            a, b = one[both], other[both]
            some = bool(len(a))
            rows["n"].append(float(len(a)))
            rows["mean"].append(float(a.mean()) if some else None)
            rows["m2"].append(float(((a - a.mean()) ** 2).sum()) if some else None)
            rows["m"].append(float(((a - a.mean()) * (b - b.mean())).sum()) if some else None)
        for name, row in rows.items():
            table[name].append(row)
    return CoMoments(columns=columns, **table)


def split_of(frame: pd.DataFrame, edges: Edges, group_by: str | None = None) -> SplitFromSite:
    columns = {
        str(name): ColumnAtSite(
            kind=kind_of(frame[name]), summary=summary_of(frame[name], edges.get(str(name)))
        )
        for name in frame
    }
    groups = {}
    if group_by is not None:
        groups = {
            str(group): split_of(part.drop(columns=group_by), edges).model_copy(
                update={"co_moments": None}
            )
            for group, part in frame.groupby(group_by, observed=True)
        }
    pairs = co_moments_of(frame) if group_by is None and len(frame) > 1 else None
    return SplitFromSite(rows=float(len(frame)), columns=columns, co_moments=pairs, groups=groups)


@dataclass
class SmallSite:
    """A site with one dataset of one split, asked again and again."""

    folder: Path
    frame: pd.DataFrame
    policy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    night: int = 0

    def ask(
        self,
        edges: Edges | None = None,
        group_by: str | None = None,
        features: Sequence[str] | None = None,
        kind: SiteTaskKind = "describe",
        frame: pd.DataFrame | None = None,
    ) -> FromSite:
        """Returns what the site answers, to whoever controls these arguments."""
        rows = self.frame if frame is None else frame
        wanted = list(rows.columns if features is None else features)
        used = rows[[*wanted, *([group_by] if group_by and group_by not in wanted else [])]]
        exact = FromSite(splits={"train": split_of(used, edges or {}, group_by)})
        request = Request(
            "heart",
            kind,
            features=None if features is None else tuple(features),
            group_by=group_by,
            job=f"job {self.night}",
        )
        at = FIRST_NIGHT + timedelta(days=self.night)
        return protect(exact, self.policy, request, Ledger(self.folder / FOLDER), now=lambda: at)

    def split(
        self,
        edges: Edges | None = None,
        group_by: str | None = None,
        features: Sequence[str] | None = None,
        kind: SiteTaskKind = "describe",
    ) -> SplitFromSite:
        return self.ask(edges, group_by, features, kind).splits["train"]

    def column(self, name: str, edges: Sequence[float] | None = None) -> Summary:
        return self.split({} if edges is None else {name: edges}).columns[name].summary
