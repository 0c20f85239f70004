"""Results of statistics jobs, computed by pandas on pooled frames: no job is needed for them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.schema import (
    Correlation,
    Feature,
    Histogram,
    Quantile,
    SiteState,
    Split,
    SplitAtSite,
    Statistics,
    Summary,
    Withheld,
)

HEART = Path(__file__).parents[2] / "examples" / "heart" / "heart_disease_uci.csv"
SITES = {
    "Cleveland": "cleveland",
    "Hungary": "hungary",
    "Switzerland": "switzerland",
    "VA Long Beach": "va-long-beach",
}
EVIL = '<script>window.harm = 1</script><img src=x onerror="window.harm = 1">'
CREATED = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
Frames = Mapping[str, pd.DataFrame]
"""Site -> its rows."""


def heart_frames() -> dict[str, dict[str, pd.DataFrame]]:
    """Returns split -> site -> rows of the heart example; every fourth row is for testing."""
    frame = pd.read_csv(HEART, true_values=["TRUE"], false_values=["FALSE"])
    by_site = {site: frame[frame["dataset"] == name] for name, site in SITES.items()}
    splits: dict[str, dict[str, pd.DataFrame]] = {"train": {}, "test": {}}
    for site, rows in by_site.items():
        kept = rows.drop(columns=["id", "dataset"])
        test = rows["id"] % 4 == 0
        splits["train"][site], splits["test"][site] = kept[~test], kept[test]
    return splits


@cache
def heart() -> Statistics:
    """Returns what a job on the heart example comes to, with nothing withheld."""
    return statistics_of(heart_frames(), dataset="heart", name="statistics/heart-nightly")


@cache
def troubled_heart() -> Statistics:
    """Returns the same with groups by sex, a site that withholds, one that is away, and noise."""
    splits = heart_frames()
    for frames in splits.values():
        frames["site-4"] = frames["cleveland"].head(11)
    result = statistics_of(splits, dataset="heart", name="statistics/heart-nightly", group_by="sex")
    reason = Withheld(what="everything", reason="11 rows < minimum 20")
    return result.model_copy(
        update={
            "splits": {
                name: without_site(split, "site-4", reason, heart_frames()[name])
                for name, split in result.splits.items()
            },
            "sites": {
                **result.sites,
                "basel": SiteState(state="absent", reason="it is not connected"),
                "zurich": SiteState(state="failed", reason="its table 'heart' is empty"),
            },
            "withheld": ["site-4: withheld, 11 rows < minimum 20"],
            "notes": ["zurich failed: the numbers are of the other sites."],
        }
    )


def without_site(split: Split, site: str, reason: Withheld, frames: Frames) -> Split:
    """Returns a split of which a site releases nothing; all sites' numbers are the others'."""
    others = split_of(frames, split.sites)
    sites = {**split.sites, site: SplitAtSite(rows=None, withheld=[reason])}
    features = {
        name: feature.model_copy(
            update={"by_site": {**feature.by_site, site: Summary(withheld=[reason])}}
        )
        for name, feature in others.features.items()
    }
    return others.model_copy(update={"sites": sites, "features": features, "groups": split.groups})


def statistics_of(
    splits: Mapping[str, Frames], *, dataset: str, name: str, group_by: str | None = None
) -> Statistics:
    """Returns the whole result of frames."""
    sites = list(dict.fromkeys(site for frames in splits.values() for site in frames))
    return Statistics(
        dataset=dataset,
        name=name,
        run="0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9",
        created=CREATED,
        sites={site: SiteState(state="answered") for site in sites},
        splits={split: split_of(frames, group_by=group_by) for split, frames in splits.items()},
        group_by=group_by,
    )


def split_of(
    frames: Frames, sites: Mapping[str, SplitAtSite] | None = None, group_by: str | None = None
) -> Split:
    """Returns one split of frames."""
    pooled = pd.concat(frames.values(), ignore_index=True)
    groups: dict[str, Split] = {}
    if group_by is not None:
        for value in sorted(pooled[group_by].dropna().unique()):
            groups[str(value)] = split_of(
                {site: frame[frame[group_by] == value] for site, frame in frames.items()}
            )
    numeric = [
        column
        for column in pooled
        if kind_of(pooled[column]) == "numeric" and pooled[column].std() > 0
    ]
    return Split(
        rows=len(pooled),
        sites={site: SplitAtSite(rows=len(frame)) for site, frame in frames.items()},
        features={str(column): feature_of(frames, str(column), pooled) for column in pooled},
        correlation=correlation_of(pooled[numeric]) if len(numeric) > 1 else None,
        groups=groups,
    )


def feature_of(frames: Frames, column: str, pooled: pd.DataFrame) -> Feature:
    """Returns one column: over all sites, and at each that has it."""
    kind = kind_of(pooled[column])
    edges = None
    if kind in ("numeric", "datetime") and pooled[column].notna().any():
        edges = np.histogram_bin_edges(seconds(pooled[column]).dropna(), 20)
    return Feature(
        kind=kind,
        overall=summary_of(pooled[column], kind, edges),
        by_site={
            site: summary_of(frame[column], kind, edges)
            for site, frame in frames.items()
            if column in frame
        },
        without=[site for site, frame in frames.items() if column not in frame],
    )


def kind_of(column: "pd.Series[Any]") -> Kind:
    """Returns what a column holds."""
    values = column.dropna()
    if values.empty:
        return "empty"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "datetime"
    if set(values.unique()) <= {True, False} and not pd.api.types.is_numeric_dtype(column):
        return "boolean"
    if pd.api.types.is_bool_dtype(values):
        return "boolean"
    return "numeric" if pd.api.types.is_numeric_dtype(values) else "categorical"


def seconds(column: "pd.Series[Any]") -> "pd.Series[float]":
    """Returns a column as numbers; datetimes as seconds since 1970."""
    if pd.api.types.is_datetime64_any_dtype(column):
        since: pd.Series[float] = (column - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
        return since
    return column.astype(float)


def summary_of(column: "pd.Series[Any]", kind: Kind, edges: "np.ndarray | None") -> Summary:
    """Returns one column at one site."""
    missing = int(column.isna().sum())
    if kind == "categorical":
        counts = {str(name): float(n) for name, n in column.value_counts().items()}
        return Summary(count=len(column) - missing, missing=missing, infinite=0, categories=counts)
    values = seconds(column).dropna()
    if values.empty:
        return Summary(count=0, missing=missing, infinite=0)
    true = float(values.sum()) if kind == "boolean" else 0.0
    categories = {"false": len(values) - true, "true": true} if kind == "boolean" else None
    variance = float(values.var()) if len(values) > 1 else None
    histogram = None
    if edges is not None:
        counted, edges = np.histogram(values, edges)
        histogram = Histogram(edges=edges.tolist(), counts=counted.astype(float).tolist())
    width = 0.0 if histogram is None else histogram.edges[1] - histogram.edges[0]
    return Summary(
        count=len(values),
        missing=missing,
        infinite=0,
        sum=float(values.sum()),
        mean=float(values.mean()),
        variance=variance,
        std=None if variance is None else float(np.sqrt(variance)),
        min=float(values.min()),
        max=float(values.max()),
        histogram=histogram,
        categories=categories,
        quantiles=[
            Quantile(q=q, value=value, lower=value - width / 10, upper=value + width / 10)
            for q, value in values.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).items()
        ],
    )


def correlation_of(frame: pd.DataFrame) -> Correlation:
    """Returns the correlations of numeric columns."""
    values = frame.corr().to_numpy()
    return Correlation(
        columns=[str(column) for column in frame],
        values=[[None if np.isnan(v) else float(v) for v in row] for row in values],
    )


def many_features(
    features: int, rows: int = 200, sites: int = 4, splits: Sequence[str] = ("train", "test")
) -> Statistics:
    """Returns a result with so many numeric features, of which each tenth has the same numbers."""
    random = np.random.default_rng(0)
    names = [f"feature-{number}" for number in range(features)]
    frames = {
        split: {
            f"site-{number}": pd.DataFrame(
                random.normal(size=(rows, 10)), columns=list("abcdefghij")
            )
            for number in range(1, sites + 1)
        }
        for split in splits
    }
    result = statistics_of(frames, dataset="wide", name="statistics/wide")
    return result.model_copy(
        update={"splits": {name: widened(split, names) for name, split in result.splits.items()}}
    )


def widened(split: Split, names: Sequence[str]) -> Split:
    """Returns a split that has the ten features of another one again and again."""
    ten = list(split.features.values())
    assert split.correlation is not None
    times = -(-len(names) // 10)
    values = np.tile(np.array(split.correlation.values, float), (times, times))
    few = values[: len(names), : len(names)].tolist()
    return split.model_copy(
        update={
            "features": {name: ten[place % 10] for place, name in enumerate(names)},
            "correlation": Correlation(columns=list(names), values=few),
        }
    )


def evil() -> Statistics:
    """Returns a result in which every name and reason is an attack."""
    column, site = f"column {EVIL}", f"site {EVIL}"
    numbers = pd.DataFrame({column: [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 90], "other": range(12)})
    words = pd.DataFrame({f"words {EVIL}": [f"category {EVIL}", "$x$", "%{x}"] * 4})
    frame = pd.concat([numbers, words], axis=1)
    result = statistics_of(
        {f"split {EVIL}": {site: frame, "plain": frame * 1}},
        dataset=f"dataset {EVIL}",
        name=f"name {EVIL}",
        group_by=f"words {EVIL}",
    )
    return result.model_copy(
        update={"withheld": [f"{site}: reason {EVIL}"], "notes": [f"note {EVIL}"]}
    )
