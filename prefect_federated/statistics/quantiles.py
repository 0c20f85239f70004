"""Quantiles of what several sites hold together, from counts alone, each with its error bound.

A histogram tells of each of its edges how many values lie below it, exactly or, where bins are
withheld, within bounds. Of all sites' edges together follow two between which a quantile must lie.
Where they are too far apart, `places_to_refine` says which edges to ask for next.

A quantile is what numpy and pandas call one: with n values, linear between the two whose places are
around (n - 1) q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.moments import Floats
from prefect_federated.statistics.schema import Histogram, Quantile, Summary

_SURE = 1e-9  # a share of a place: so far may rounding have moved a whole number


@dataclass(frozen=True)
class Cumulative:
    """How many values lie below each edge: at least `least`, at most `most`.

    Values on the edge itself may be counted in `least`, and are not in `most`; so of values that
    are all the same, `least` at their edge is all of them, and `most` is 0.

    Args:
        edges: `(n,)`, rising.
        least: `(n,)`.
        most: `(n,)`.
        total: All values.
        is_exact: Whether the counts have no noise.
    """

    edges: Floats
    least: Floats
    most: Floats
    total: float
    is_exact: bool = True

    @classmethod
    def of(
        cls, histogram: Histogram, total: float | None, is_exact: bool = True
    ) -> "Cumulative | None":
        """Returns what a histogram tells; None if it tells nothing.

        Args:
            histogram: Its outermost edges are beyond all values, or some values are outside.
            total: All values, inside and outside; the sum of the counts if None.
            is_exact: Whether the counts have no noise.
        """
        told = np.array([np.nan if c is None else max(c, 0.0) for c in histogram.counts])
        known = np.nan_to_num(told)
        if total is None and np.isnan(told).any():
            return None
        whole = max(known.sum(), total or 0.0)
        if whole <= 0:
            return None
        before = np.concatenate([[0.0], np.cumsum(known)])
        return cls(
            edges=np.array(histogram.edges),
            least=before,
            most=whole - (before[-1] - before),
            total=float(whole),
            is_exact=is_exact,
        )

    @classmethod
    def between(cls, summary: Summary) -> "Cumulative | None":
        """Returns that all values lie between minimum and maximum, if these are known.

        They may have been moved, but outwards only: where they are equal, all values are there.
        """
        low, high, total = summary.min, summary.max, summary.count
        if low is None or high is None or not total or low > high or summary.noise is not None:
            return None
        if low == high:
            return cls(np.array([low]), np.array([total]), np.zeros(1), float(total))
        ends = np.array([0.0, total])
        return cls(np.array([low, high]), ends, ends, float(total))

    def at(self, edges: Floats) -> tuple[Floats, Floats]:
        """Returns how many values lie below other edges, at least and at most."""
        left = np.searchsorted(self.edges, edges, side="right") - 1
        right = np.searchsorted(self.edges, edges, side="left")
        least = np.where(left >= 0, self.least[np.maximum(left, 0)], 0.0)
        last = len(self.edges) - 1
        most = np.where(right <= last, self.most[np.minimum(right, last)], self.total)
        return least, most


def together(parts: Sequence[Cumulative]) -> Cumulative | None:
    """Returns what is known of all values together; None where there are none.

    Of values that are counted more than once, as a site's are after a refinement, use `narrowed`.
    """
    if not parts:
        return None
    edges = np.unique(np.concatenate([part.edges for part in parts]))
    bounds = [part.at(edges) for part in parts]
    return Cumulative(
        edges=edges,
        least=np.sum([least for least, _ in bounds], axis=0),
        most=np.sum([most for _, most in bounds], axis=0),
        total=sum(part.total for part in parts),
        is_exact=all(part.is_exact for part in parts),
    )


def narrowed(one: Cumulative, other: Cumulative) -> Cumulative:
    """Returns what two counts of the same values tell together."""
    edges = np.union1d(one.edges, other.edges)
    (least, most), (least_too, most_too) = one.at(edges), other.at(edges)
    least = np.maximum(least, least_too)
    # What lies below or on an edge lies below the next one, also where the counts disagree.
    before = np.concatenate([[0.0], least[:-1]])
    return Cumulative(
        edges=edges,
        least=least,
        most=np.maximum(np.minimum(most, most_too), before),
        total=one.total,
        is_exact=one.is_exact and other.is_exact,
    )


@dataclass(frozen=True)
class _Located:
    """Where the values of two neighbouring places lie, and the weight of the second."""

    lower: Floats
    upper: Floats
    guess: Floats
    share: float

    def quantile(self, q: float, is_exact: bool) -> Quantile:
        weights = np.array([1 - self.share, self.share])
        value, lower, upper = (
            # A weight of 0 leaves out the neighbour, which may not be known at all.
            float(sum(w * x for w, x in zip(weights, ends, strict=True) if w > 0))
            for ends in (self.guess, self.lower, self.upper)
        )
        is_bounded = is_exact and lower > -OUTER / 2 and upper < OUTER / 2
        return Quantile(
            q=q,
            value=value if abs(value) < OUTER / 2 else None,
            lower=lower if is_bounded or (is_exact and lower > -OUTER / 2) else None,
            upper=upper if is_bounded or (is_exact and upper < OUTER / 2) else None,
        )


def _locate(known: Cumulative, q: float) -> _Located:
    place = (known.total - 1) * q
    first = np.floor(place + _SURE)
    share = max(0.0, place - first) if place - first > _SURE else 0.0
    places = np.array([first, min(first + 1, known.total - 1) if share else first])
    below = np.searchsorted(known.most, places + _SURE, side="right") - 1
    above = np.searchsorted(known.least, places + 1 - _SURE, side="left")
    lower = np.where(below >= 0, known.edges[np.maximum(below, 0)], -OUTER)
    last = len(known.edges) - 1
    upper = np.where(above <= last, known.edges[np.minimum(above, last)], OUTER)
    inner = np.abs(known.edges) < OUTER / 2
    edges, middle = known.edges[inner], ((known.least + known.most) / 2)[inner]
    guess = np.interp(places + 0.5, np.maximum.accumulate(middle), edges)
    return _Located(lower, upper, np.clip(guess, lower, np.maximum(lower, upper)), float(share))


def quantiles(known: Cumulative | None, wanted: Sequence[float]) -> list[Quantile]:
    """Returns the quantiles; those that are not known have no value.

    Args:
        known: What is known of the values.
        wanted: From 0 to 1.
    """
    if known is None or not (np.abs(known.edges) < OUTER / 2).any():
        return [Quantile(q=q, value=None) for q in wanted]
    return [_locate(known, q).quantile(q, known.is_exact) for q in wanted]


@dataclass(frozen=True)
class Near:
    """When the bounds of a quantile are near enough: one of the two is.

    Args:
        width: How far apart they may be.
        share: Of all values, so many may lie between them.
    """

    width: float
    share: float = 0.0


def places_to_refine(
    known: Cumulative | None, wanted: Sequence[float], near: Near, parts: int
) -> list[float]:
    """Returns the edges to count between next, so that the bounds come closer; none if near enough.

    Args:
        known: What is known of the values.
        wanted: The quantiles.
        near: When the bounds of a quantile are near enough.
        parts: Into how many parts a bin is divided.
    """
    if known is None or not known.is_exact:
        return []
    inner = known.edges[np.abs(known.edges) < OUTER / 2]
    if not len(inner):
        return []
    middle = (known.least + known.most) / 2
    bins: set[int] = set()  # by their left edge
    for q in wanted:
        found = _locate(known, q)
        # Between the bounds there may be edges: what lies below them is not known well enough, as
        # bins are withheld. Only the outermost two bins are worth dividing.
        is_open = found.lower < found.upper
        lower, upper = found.lower[is_open], found.upper[is_open]
        bins |= set((np.searchsorted(known.edges, lower, side="right") - 1).tolist())
        bins |= set((np.searchsorted(known.edges, upper, side="left") - 1).tolist())
    width = float(inner[-1] - inner[0]) or 1.0
    edges = set[float]()
    for place in bins:
        if not 0 <= place < len(known.edges) - 1:
            continue
        left, right = float(known.edges[place]), float(known.edges[place + 1])
        inside = middle[place + 1] - middle[place]
        if right - left > near.width and inside > near.share * known.total:
            edges |= set(_divided(left, right, width, parts, inner).tolist())
    return sorted(edges)


def _divided(
    lower: float, upper: float, width: float, parts: int, inner: Floats
) -> NDArray[np.float64]:
    """Divides a bin evenly; one that has no end is divided ever more coarsely, outwards."""
    outwards = width * 2.0 ** np.arange(-4, parts - 4)
    if lower <= -OUTER / 2 and upper >= OUTER / 2:
        return np.concatenate([inner[0] - outwards, inner[[0, -1]], inner[-1] + outwards])
    if lower <= -OUTER / 2:
        return upper - np.concatenate([[0.0], outwards])
    if upper >= OUTER / 2:
        return lower + np.concatenate([[0.0], outwards])
    return np.linspace(lower, upper, parts + 1)
