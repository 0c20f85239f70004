"""How far two sets of counts are from each other: PSI and the Kolmogorov-Smirnov distance.

Both work on histograms or on counts of categories; the values themselves are not needed. What
chance alone makes of them is here, too: few rows differ much without a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_federated.statistics.schema import Histogram

Floats = NDArray[np.float64]

_BINS = 10
"""A bin of PSI holds a tenth of all values at least: of the two sets' mean."""
_HALF = 0.5
_CHANCE_KS = 1.6276  # K(1.6276) = 0.99 for Kolmogorov's distribution K
_CHANCE_NORMAL = 2.3263  # the normal distribution's 99 % quantile


@dataclass(frozen=True)
class Binned:
    """Two histograms on common edges.

    Args:
        before: Values a bin, `(n_bins,)`, float64.
        now: The same for the newer one.
        was_moved: Whether the edges differed, and `now` was moved to the edges of `before`.
    """

    before: Floats
    now: Floats
    was_moved: bool


def counts_of(histogram: Histogram, count: float | None = None) -> Floats:
    """Returns the counts; bins that are withheld share evenly what is left of `count`.

    Counts below 0, as noise can make them, are 0.

    >>> counts_of(Histogram(edges=[0, 1, 2, 3], counts=[4, None, None]), 10).tolist()
    [4.0, 3.0, 3.0]
    """
    counts = np.array([np.nan if c is None else max(c, 0.0) for c in histogram.counts], float)
    unknown = np.isnan(counts)
    if unknown.any():
        left = max((count or 0.0) - float(np.nansum(counts)), 0.0)
        counts[unknown] = left / unknown.sum()
    return counts


def binned(before: Histogram, now: Histogram, counts: tuple[float | None, float | None]) -> Binned:
    """Puts two histograms on common edges: the edges of `before`, and a bin beyond either end.

    Where the edges are the same nothing is moved. Where they differ, nobody knows how the values of
    `now` lie inside its bins; they are taken to lie as near to `before` as the bin allows. So what
    is found to differ differs for certain, and a difference smaller than a bin may be overlooked.

    Args:
        before: The histogram whose edges are kept.
        now: The histogram that is moved.
        counts: All values of each, for bins that are withheld.
    """
    first, second = counts_of(before, counts[0]), counts_of(now, counts[1])
    edges, others = np.array(before.edges), np.array(now.edges)
    if edges.shape == others.shape and np.allclose(edges, others, rtol=1e-12, atol=0):
        return Binned(first, second, False)
    total = second.sum()
    shares = _running(first)
    at_edges = np.concatenate([[0.0], np.cumsum(second)])
    # At each edge of `before`: between these two lies the count of `now` up to there.
    low = at_edges[np.clip(np.searchsorted(others, edges, "right") - 1, 0, None)]
    low[edges < others[0]] = 0.0
    high = at_edges[np.clip(np.searchsorted(others, edges, "left"), None, len(others) - 1)]
    high[edges > others[-1]] = total
    up_to = np.clip(shares * total, low, high)
    moved = np.diff(np.concatenate([[0.0], up_to, [total]]))
    return Binned(np.concatenate([[0.0], first, [0.0]]), moved, True)


def ks(before: Floats, now: Floats) -> float:
    """Returns the largest difference of the two running shares, 0 to 1; 0 if one set is empty.

    Source: Smirnov 1939; on bins it is at most the distance of the values themselves, and less by
    no more than the share of the fullest bin.
    """
    if before.sum() <= 0 or now.sum() <= 0:
        return 0.0
    return float(np.abs(_running(before) - _running(now)).max())


def psi(before: Floats, now: Floats) -> float:
    """Returns the population stability index: the sum of (now - before) ln(now / before) of shares.

    Half a value is added to each bin of both, so that an empty bin gives a finite number.

    Source: Siddiqi 2006, "Credit Risk Scorecards", chapter 9; the sum is Jeffreys' divergence of
    the two. The half is Jeffreys' prior.
    """
    first, second = (before + _HALF) / (before + _HALF).sum(), (now + _HALF) / (now + _HALF).sum()
    return float(((second - first) * np.log(second / first)).sum())


def merged(before: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Merges neighbouring bins until each holds a tenth of the values, as PSI is used to have it.

    What counts is the mean of the two shares, so that values where there were none before keep a
    bin of their own.
    """
    shares = _shares(before) / 2 + _shares(now) / 2
    starts, held = [0], 0.0
    for place, share in enumerate(shares):
        if held >= 1 / _BINS - 1e-12:
            starts.append(place)
            held = 0.0
        held += share
    if held < 1 / _BINS - 1e-12 and len(starts) > 1:
        starts.pop()  # what is left over goes to the last whole bin
    return np.add.reduceat(before, starts), np.add.reduceat(now, starts)


def of_categories(
    before: Mapping[str, float], now: Mapping[str, float]
) -> tuple[list[str], Floats, Floats]:
    """Returns the categories of both, and the counts of each; 0 where one has none."""
    names = list(dict.fromkeys([*before, *now]))
    first, second = ([each.get(name, 0.0) for name in names] for each in (before, now))
    return names, np.clip(first, 0, None).astype(float), np.clip(second, 0, None).astype(float)


def ks_by_chance(before: float, now: float) -> float:
    """Returns the KS distance that chance alone exceeds once in a hundred times.

    Args:
        before: Values in the one set.
        now: Values in the other.

    Source: Smirnov 1948, "Table for Estimating the Goodness of Fit of Empirical Distributions".
    """
    if min(before, now) < 1:
        return 1.0
    return float(min(_CHANCE_KS * np.sqrt(1 / before + 1 / now), 1.0))


def psi_by_chance(bins: int, before: float, now: float) -> float:
    """Returns the PSI that chance alone exceeds once in a hundred times.

    Args:
        bins: How many.
        before: Values in the one set.
        now: Values in the other.

    Source: Yurdakul and Naranjo 2020, "Statistical properties of the population stability index":
    about chi-squared with `bins` - 1 degrees of freedom, times 1 / before + 1 / now; its quantile
    by Wilson and Hilferty 1931.
    """
    if min(before, now) < 1 or bins < 2:
        return np.inf
    free = bins - 1
    part = 2 / (9 * free)
    quantile = free * (1 - part + _CHANCE_NORMAL * np.sqrt(part)) ** 3
    return float(quantile * (1 / before + 1 / now))


def added(histograms: Sequence[Histogram]) -> Histogram:
    """Returns the sum of histograms with the same edges; null where one of them is withheld."""
    columns = zip(*(histogram.counts for histogram in histograms), strict=True)
    sums = [None if None in each else float(sum(c or 0.0 for c in each)) for each in columns]
    return Histogram(edges=histograms[0].edges, counts=sums)


def _shares(counts: Floats) -> Floats:
    total = counts.sum()
    shares: Floats = counts / total if total > 0 else np.zeros_like(counts)
    return shares


def _running(counts: Floats) -> Floats:
    """Returns the share of the values up to each edge, `(n_bins + 1,)`."""
    running: Floats = np.concatenate([[0.0], np.cumsum(_shares(counts))])
    return running
