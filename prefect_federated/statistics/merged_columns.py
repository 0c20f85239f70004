"""One column over all sites that have released it, from what each has."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from prefect_federated.statistics import correlation
from prefect_federated.statistics.correlation import Products, correlations
from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.moments import Floats, Moments, merged
from prefect_federated.statistics.quantiles import Cumulative, quantiles, together
from prefect_federated.statistics.schema import (
    CoMoments,
    Correlation,
    Histogram,
    Summary,
    Withheld,
)

Matrix = list[list[float | None]]


def shown(summary: Summary, known: Cumulative | None, wanted: Sequence[float]) -> Summary:
    """Returns a site's summary as it is shown: without the outer bins, with quantiles.

    Args:
        summary: As the site has sent it.
        known: What its counts tell.
        wanted: The quantiles.
    """
    histogram = None if summary.histogram is None else _inner(summary.histogram)
    found = quantiles(known, wanted) if histogram is not None else []
    update = {"histogram": histogram, "quantiles": found, "mean_rest": None}
    return summary.model_copy(update=update)


def overall(
    by_site: Mapping[str, Summary], known: Mapping[str, Cumulative], wanted: Sequence[float]
) -> Summary:
    """Returns a column's summary over all sites that have released it.

    Args:
        by_site: Site -> its summary, as the site has sent it.
        known: Site -> what its counts tell.
        wanted: The quantiles.
    """
    parts = list(by_site.values())
    told: dict[str, float | None] = {
        "count": _sum(part.count for part in parts),
        "missing": _sum(part.missing for part in parts),
        "infinite": _sum(part.infinite for part in parts),
        "sum": _sum(part.sum for part in parts),
        "min": min((p.min for p in parts if p.min is not None), default=None),
        "max": max((p.max for p in parts if p.max is not None), default=None),
        **_moments(parts),
    }
    histogram = _together([p.histogram for p in parts if p.histogram is not None])
    withheld = [
        Withheld(what=kept.what, reason=f"{site}: {kept.reason}")
        for site, part in by_site.items()
        for kept in part.withheld
    ]
    categories, others = _categories(parts)
    found = quantiles(together(list(known.values())), wanted) if histogram is not None else []
    noises = dict.fromkeys(part.noise for part in parts if part.noise is not None)
    return Summary(
        **told,
        histogram=histogram,
        quantiles=found,
        categories=categories,
        other_categories=others,
        noise="; ".join(noises) or None,
        withheld=withheld,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _moments(parts: Sequence[Summary]) -> dict[str, float | None]:
    """Returns mean, variance and standard deviation; variance over sites that tell all of it."""
    together = Moments.none(1)
    is_varied = True
    for part in parts:
        if part.mean is None or not part.count or part.count <= 0:
            continue
        is_varied &= part.variance is not None or part.count == 1
        m2 = (part.variance or 0.0) * (part.count - 1)
        one = {
            "count": part.count, "missing": 0.0, "infinite": 0.0, "sum": part.sum or 0.0,
            "mean": part.mean, "rest": part.mean_rest or 0.0, "m2": m2, "min": np.inf,
            "max": -np.inf,
        }  # fmt: skip
        together = merged(together, Moments(**{name: np.array([n]) for name, n in one.items()}))
    mean, variance = float(together.mean[0]), float(together.variance[0])
    if not is_varied or not math.isfinite(variance) or variance < 0:
        return {"mean": mean if math.isfinite(mean) else None}
    return {"mean": mean, "variance": variance, "std": math.sqrt(variance)}


def _inner(histogram: Histogram) -> Histogram:
    is_outer = histogram.edges[0] == -OUTER
    kept = slice(1, -1) if is_outer else slice(None)
    return Histogram(edges=histogram.edges[kept], counts=histogram.counts[kept])


def _together(histograms: Sequence[Histogram]) -> Histogram | None:
    """Adds histograms up on the edges that all of them have."""
    if not histograms:
        return None
    inner = [_inner(histogram) for histogram in histograms]
    common = sorted(set.intersection(*(set(histogram.edges) for histogram in inner)))
    if len(common) < 2:
        return None
    on_common = [_on(histogram, common) for histogram in inner]
    return Histogram(edges=common, counts=[_sum(counts) for counts in zip(*on_common, strict=True)])


def _on(histogram: Histogram, edges: Sequence[float]) -> list[float | None]:
    """Returns a histogram's counts on fewer of its own edges; None where a part is withheld."""
    if len(edges) == len(histogram.edges):
        return histogram.counts
    places = [histogram.edges.index(edge) for edge in edges]
    counts: list[float | None] = []
    for start, end in pairwise(places):
        within = histogram.counts[start:end]
        counts.append(None if None in within else _sum(within))
    return counts


def _categories(
    parts: Sequence[Summary],
) -> tuple[dict[str, float | None] | None, float | None]:
    told = [part.categories for part in parts if part.categories is not None]
    names = dict.fromkeys(name for categories in told for name in categories)
    counts = {name: _sum(categories.get(name) for categories in told) for name in names}
    ordered = dict(sorted(counts.items(), key=lambda item: -(item[1] or 0.0)))
    return (ordered if told else None), _sum(part.other_categories for part in parts)


def shown_correlation(sums: CoMoments) -> Correlation:
    """Returns a site's correlations."""
    values = correlations(_products(sums, sums.columns))
    return Correlation(columns=sums.columns, values=_told(values), withheld=sums.withheld)


def overall_correlation(by_site: Mapping[str, CoMoments]) -> Correlation | None:
    """Returns the correlations over all sites, each pair over those that have released it."""
    columns = list(dict.fromkeys(name for sums in by_site.values() for name in sums.columns))
    if not columns:
        return None
    together = Products.none(len(columns))
    for sums in by_site.values():
        together = correlation.merged(together, _products(sums, columns))
    withheld = [
        Withheld(what=kept.what, reason=f"{site}: {kept.reason}")
        for site, sums in by_site.items()
        for kept in sums.withheld
    ]
    values = _told(correlations(together))
    return Correlation(columns=columns, values=values, withheld=withheld)


def _products(sums: CoMoments, columns: Sequence[str]) -> Products:
    """Returns a site's sums for all columns; over no rows where the site has not told them."""
    places = [columns.index(name) for name in sums.columns]
    size, rows = len(columns), np.ix_(places, places)
    told = [np.array(matrix, dtype=np.float64) for matrix in (sums.n, sums.mean, sums.m2, sums.m)]
    is_known = np.isfinite(np.sum(told, axis=0)) & (told[0] > 0)
    is_known &= is_known.T
    rest = np.zeros_like(told[0])
    if sums.mean_rest is not None:
        rest = np.nan_to_num(np.array(sums.mean_rest, dtype=np.float64))
    n, mean, its_rest, m2, m = (np.zeros((size, size)) for _ in range(5))
    for whole, part in zip(
        (n, mean, its_rest, m2, m), (told[0], told[1], rest, told[2], told[3]), strict=True
    ):
        whole[rows] = np.where(is_known, part, 0.0)
    return Products(n=n, mean=mean, rest=its_rest, m2=m2, m=m)


def _told(values: Floats) -> Matrix:
    return [[n if math.isfinite(n) else None for n in row] for row in values.tolist()]
