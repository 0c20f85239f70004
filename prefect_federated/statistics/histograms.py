"""Histograms on edges that all sites share: equal to numpy's, and fast, as the bins are even.

Fine bins are nested in the bins that are shown: a site that has too few rows for so many answers on
every second, fourth, ... edge. Two outer bins take what is outside of the range, so that counts add
up to all values; they are not shown.
"""

import numpy as np
from numpy.typing import NDArray

from prefect_federated.statistics.moments import Floats

OUTER = float(np.finfo(np.float64).max)
"""The outer bins reach to here, below and above."""

_NARROW = 1e-200  # so narrow a range divides to no number


def shown_edges(low: float, high: float, bins: int) -> Floats:
    """Returns the edges of `bins` even bins, as `numpy.histogram` has them for a range.

    A range of one value is widened as numpy does it, by 0.5 to each side, and so is one that is so
    narrow that floats have no room for the bins; for large values, by as much as makes room.
    """
    largest = max(abs(low), abs(high))
    if low == high or high - low < 4 * bins * np.spacing(largest):
        room = max(0.5, largest * 1e-9)
        low, high = low - room, high + room
    return np.linspace(low, high, bins + 1)


def nested_edges(shown: Floats, fine: int) -> Floats:
    """Returns edges of which every `fine`-th is exactly one of the given ones."""
    within = np.arange(fine) / fine
    edges = shown[:-1, None] + np.diff(shown)[:, None] * within[None, :]
    return np.append(edges.ravel(), shown[-1])


def with_outer(edges: Floats) -> Floats:
    """Returns edges with those of the two outer bins."""
    return np.concatenate([[-OUTER], edges, [OUTER]])


def steps(bins: int, fine: int) -> list[int]:
    """Returns by which steps nested edges can be thinned so that they stay nested; rising.

    >>> steps(4, 6)
    [1, 2, 3, 6, 12, 24]
    """
    finer = [step for step in range(1, fine + 1) if fine % step == 0]
    return finer + [fine * step for step in range(2, bins + 1) if bins % step == 0]


def step_for(bins: int, fine: int, allowed: int) -> int | None:
    """Returns the smallest such step that leaves at most `allowed` bins; None if even one is more.

    >>> step_for(20, 16, allowed=30)
    16
    """
    return next((step for step in steps(bins, fine) if bins * fine // step <= allowed), None)


def counts(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """Returns how many of some finite values are in each bin, as `numpy.histogram` does.

    Each bin has its left edge, the last has both. Where the bins are even, a value's bin is found
    by dividing, and corrected by comparing with the edges.

    Args:
        values: `(n,)`, finite.
        edges: `(n_bins + 1,)`, rising.
    """
    bins = len(edges) - 1
    low, high = edges[0], edges[-1]
    if not len(values):
        return np.zeros(bins, np.int64)
    if values.min() < low or values.max() > high:
        values = values[(values >= low) & (values <= high)]
    if edges[-1] - edges[0] > _NARROW and _are_even(edges):
        place = ((values - low) * (bins / (high - low))).astype(np.int64)
        np.clip(place, 0, bins - 1, out=place)
        place -= values < edges[place]
        place += values >= edges[place + 1]
    else:
        place = np.searchsorted(edges, values, side="right") - 1
    np.clip(place, 0, bins - 1, out=place)  # the last edge is in the last bin
    return np.bincount(place, minlength=bins)


def _are_even(edges: Floats) -> bool:
    """Whether no edge is so far from its even place that dividing misses by more than one bin."""
    width = (edges[-1] - edges[0]) / (len(edges) - 1)
    off = np.abs(edges - (edges[0] + width * np.arange(len(edges))))
    return bool(off.max() < 0.4 * width)


def counts_with_outer(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """Returns the counts in the bins of `with_outer(edges)`.

    As in all of them but the last, a bin has its left edge; only `edges[-1]` itself counts in the
    last inner bin, as numpy has it.
    """
    below, above = int((values < edges[0]).sum()), int((values > edges[-1]).sum())
    return np.concatenate([[below], counts(values, edges), [above]])
