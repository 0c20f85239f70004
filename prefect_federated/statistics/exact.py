"""A tally's numbers in the schema that a site answers in: exact, before protection."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.sources import Aggregate
from prefect_federated.statistics.correlation import Products
from prefect_federated.statistics.groups import MOST_GROUPS, GroupedTally
from prefect_federated.statistics.histograms import step_for, with_outer
from prefect_federated.statistics.moments import Floats
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    CoMoments,
    Histogram,
    SplitFromSite,
    Summary,
    Withheld,
)
from prefect_federated.statistics.tally import MOST_CATEGORIES, Tally

_RANGED: frozenset[Kind] = frozenset({"numeric", "datetime"})
"""Kinds with histogram and quantiles."""
_SUMMED: frozenset[Kind] = frozenset({"numeric", "boolean", "datetime"})


def takes_a_range(kind: Kind) -> bool:
    """Whether columns of this kind have a histogram and quantiles."""
    return kind in _RANGED


@dataclass(frozen=True)
class Parts:
    """What of a tally is told.

    Args:
        moments: Minimum, maximum, sum, mean, variance and correlations.
        categories: Counts a category.
        bins: Shown bins; 0 for edges that were given one by one.
        fine: Parts of each that were counted.
        is_fine: Whether these parts are told, instead of the shown bins.
        bins_for: Given a number of values and of bins asked for, how many bins there may be.
    """

    moments: bool = True
    categories: bool = True
    bins: int = 0
    fine: int = 1
    is_fine: bool = False
    bins_for: Callable[[float, int], int] = field(default=lambda rows, asked: asked)


def exact_split(tally: GroupedTally, parts: Parts) -> SplitFromSite:
    """Returns the exact numbers of a split and of its groups."""
    groups = {name: _exact(group, parts) for name, group in sorted(tally.groups.items())}
    whole = _exact(tally.whole, parts).model_copy(update={"groups": groups})
    if tally.is_too_many:
        why = f"more than {MOST_GROUPS} different values; group by a column with fewer"
        return whole.model_copy(update={"withheld": [Withheld(what="groups", reason=why)]})
    return whole


def exact_aggregate(aggregate: Aggregate) -> ColumnAtSite:
    """Returns what a database computed of a column: all but sums and variance."""
    kind, categories = aggregate.kind, None
    withheld: list[Withheld] = []
    if kind == "categorical":
        categories, withheld = _named(aggregate.categories, aggregate.has_too_many_categories)
    has_range = kind in _SUMMED and aggregate.count > 0
    summary = Summary(
        count=aggregate.count,
        missing=aggregate.missing,
        infinite=aggregate.infinite if kind in _SUMMED else None,
        min=_finite(aggregate.min) if has_range else None,
        max=_finite(aggregate.max) if has_range else None,
        categories=categories,
        withheld=withheld,
    )
    return ColumnAtSite(kind=kind, summary=summary)


def fine_split(split: SplitFromSite) -> SplitFromSite | None:
    """Returns what of a split, and of its groups, has a histogram; None if nothing has."""
    columns = {
        name: column
        for name, column in split.columns.items()
        if column.summary.histogram is not None
    }
    groups = {name: fine_split(group) for name, group in split.groups.items()}
    kept = {name: group for name, group in groups.items() if group is not None}
    if not columns and not kept:
        return None
    return split.model_copy(update={"columns": columns, "groups": kept, "co_moments": None})


def _exact(tally: Tally, parts: Parts) -> SplitFromSite:
    plan = tally.plan
    columns = {
        name: ColumnAtSite(kind=plan.kinds[name], summary=_number_summary(tally, place, parts))
        for place, name in enumerate(plan.numbers)
    }
    for name in plan.categories if parts.categories else ():
        categories, withheld = _named(tally.categories[name], tally.has_too_many(name))
        there = tally.there[name]
        summary = Summary(
            count=there, missing=tally.rows - there, categories=categories, withheld=withheld
        )
        columns[name] = ColumnAtSite(kind="categorical", summary=summary)
    told = {name: columns[name] for name in plan.kinds if name in columns}
    products = tally.products
    return SplitFromSite(
        rows=tally.rows,
        columns=told,
        co_moments=None if products is None else co_moments(products, tally),
    )


def _number_summary(tally: Tally, place: int, parts: Parts) -> Summary:
    name, found = tally.plan.numbers[place], tally.moments
    kind, count = tally.plan.kinds[name], float(found.count[place])
    told: dict[str, float | None] = {}
    withheld: list[Withheld] = []
    categories: dict[str, float | None] | None = None
    told |= {
        "count": count,
        "missing": float(found.missing[place]),
        "infinite": float(found.infinite[place]),
    }
    if parts.moments and kind in _SUMMED and count:
        told |= {"min": float(found.min[place]), "max": float(found.max[place])}
    if parts.moments and kind in _SUMMED and count:
        variance = float(found.variance[place])
        told |= {
            "sum": _finite(found.sum[place]),
            "mean": _finite(found.mean[place]),
            "mean_rest": _finite(found.rest[place]),
            "variance": _finite(variance),
            "std": _finite(math.sqrt(variance)) if variance >= 0 else None,
        }
        if told["sum"] is None or (told["variance"] is None and count > 1):
            withheld = [Withheld(what="sum, mean, variance", reason="too large for a float")]
        elif kind == "boolean":
            true = round(float(found.sum[place]))
            categories = {"false": count - true, "true": float(true)}
    histogram = None
    if name in tally.histograms and count_of(tally, name) > 0:
        histogram, why = _histogram(tally, name, parts)
        withheld += [] if why is None else [why]
    return Summary(**told, categories=categories, histogram=histogram, withheld=withheld)


def count_of(tally: Tally, name: str) -> int:
    """Returns how many finite values of a column its histogram has counted."""
    return int(tally.histograms[name].sum())


def _histogram(tally: Tally, name: str, parts: Parts) -> tuple[Histogram | None, Withheld | None]:
    """Returns a column's histogram with as many bins as there may be, and what that keeps back."""
    counted, edges = tally.histograms[name], tally.plan.edges[name]
    values, asked = count_of(tally, name), len(counted) - 2
    allowed = parts.bins_for(values, asked)
    if parts.is_fine:
        step = step_for(1, parts.fine, allowed // parts.bins)
        return (None if step in (None, parts.fine) else _thinned(counted, edges, step or 1)), None
    if allowed < 1:
        return None, None  # so few values are withheld as a whole
    if parts.bins == 0:
        return _thinned(counted, edges, math.ceil(asked / allowed)), None
    step = (step_for(parts.bins, 1, allowed) or parts.bins) * parts.fine
    bins = asked // step
    histogram = _thinned(counted, edges, step)
    if bins == parts.bins:
        return histogram, None
    why = f"{parts.bins} were asked for; of so few values it has {bins}"
    return histogram, Withheld(what="bins of the histogram", reason=why)


def _thinned(counted: NDArray[np.int64], edges: Floats, step: int) -> Histogram:
    starts = np.arange(0, len(edges) - 1, step)
    inner = np.add.reduceat(counted[1:-1], starts)
    kept = np.append(edges[starts], edges[-1])
    counts = [counted[0], *inner, counted[-1]]
    return Histogram(edges=with_outer(kept).tolist(), counts=[float(n) for n in counts])


def _named(
    categories: Mapping[str, int], is_too_many: bool
) -> tuple[dict[str, float | None] | None, list[Withheld]]:
    if is_too_many:
        why = f"more than {MOST_CATEGORIES:,} different values"
        return None, [Withheld(what="categories", reason=why)]
    ordered = sorted(categories.items(), key=lambda item: (-item[1], item[0]))
    return {name: float(count) for name, count in ordered}, []


def co_moments(products: Products, tally: Tally) -> CoMoments:
    """Returns the sums of products of the columns that have values."""
    plan = tally.plan
    used = [place for place, name in enumerate(plan.numbers) if plan.kinds[name] in _SUMMED]
    rows = np.ix_(used, used)

    def told(matrix: Floats) -> list[list[float | None]]:
        return [[_finite(value) for value in row] for row in matrix[rows].tolist()]

    return CoMoments(
        columns=[plan.numbers[place] for place in used],
        n=told(products.n),
        mean=told(products.mean),
        mean_rest=told(products.rest),
        m2=told(products.m2),
        m=told(products.m),
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
