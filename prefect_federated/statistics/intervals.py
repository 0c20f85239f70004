"""Which bins of a histogram are withheld, beside all bins of the same values ever released.

Whoever has the counts of [0, 10) and [0, 11) has that of [10, 11). So what matters is not one
histogram but all edges together. A released bin joins two edges; of edges that a chain of released
bins joins, the number of values between any two is known, and so is what lies between two and in no
joined edges inside. None of these numbers may be small, nor 0: where an empty bin looks unlike one
with a person in it, edges that close in on the person find the very value. Only beyond the released
minimum and maximum is it known that there is nothing.

This stops what can be added and subtracted. It does not weigh what can be guessed from bounds.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Edge = tuple[float, ...]
"""A value, and how many values lie below it, in each group; one number if there are no groups."""

Cell = tuple[Edge, Edge]

Floats = NDArray[np.float64]

_ROUNDS = 200
"""So often bins are taken away until nothing small is known; a histogram that needs more is
withheld as a whole, so that nobody's edges keep a site busy."""


@dataclass(frozen=True)
class Bins:
    """The bins of a histogram, which hold all values.

    Args:
        edges: `(n_bins + 1,)`, rising.
        counts: `(n_groups, n_bins)`.
    """

    edges: Sequence[float]
    counts: Sequence[Sequence[float]]

    def cells(self) -> list[Cell]:
        """Returns each bin with how many values lie below its edges."""
        values = [float(edge) for edge in self.edges]
        if len(values) > 2:
            # The last bin, or the last before one that takes all beyond, has its right edge, too.
            values[-2] = math.nextafter(values[-2], math.inf)
        values[0], values[-1] = -math.inf, math.inf
        table = np.asarray(self.counts, float)
        below = np.concatenate([np.zeros((1, len(table))), np.cumsum(table, axis=1).T]).tolist()
        edges = [(value, *numbers) for value, numbers in zip(values, below, strict=True)]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class Limits:
    """What no known number may be below.

    Args:
        smallest: For numbers of values; 0 or 1 if all may be known.
        low: What is known to lie below all values.
        high: What is known to lie above them, or to be the last.
        beside: In each group, rows that are in no bin and whose number is withheld, such as missing
            values; where there are any, only these and all values together are known.
        smallest_beside: As `smallest`, for what these rows are part of.
    """

    smallest: float
    low: float = -math.inf
    high: float = math.inf
    beside: Sequence[float] = ()
    smallest_beside: float = 0

    def are_passed(self, numbers: Floats, is_last: bool = False) -> bool:
        """Tells whether one of some numbers is too small."""
        limit = self.smallest
        if is_last and any(self.beside):
            limit = max(limit, self.smallest_beside)
        return limit > 1 and bool((numbers < limit).any())


def releasable(known: Sequence[Cell], bins: Bins, limits: Limits) -> list[bool]:
    """Returns for each bin whether it may be released.

    Args:
        known: Bins that were released of the same values in the same groups.
        bins: Those that may be.
        limits: What must not be known.

    >>> releasable([], Bins([0, 10, 20, 30, 40], [[40, 3, 50, 60]]), Limits(5))
    [False, False, True, True]
    >>> first = Bins([0, 10, 30], [[40, 53]])
    >>> releasable(first.cells(), Bins([0, 11, 30], [[43, 50]]), Limits(5))
    [False, False]
    """
    new = bins.cells()
    table = np.asarray(bins.counts, float)
    # A group without values hides nobody's.
    groups = [group for group, row in enumerate(table) if row.any()]
    told = np.array([edge for cell in [*new, *known] for edge in cell], float)
    told[:, 0] = np.where(told[:, 0] <= limits.low, -np.inf, told[:, 0])
    told[:, 0] = np.where(told[:, 0] > limits.high, np.inf, told[:, 0])
    _, first, place = np.unique(told[:, 0], return_index=True, return_inverse=True)
    below = told[first][:, [group + 1 for group in groups]]
    if any(limits.beside):
        beside = np.asarray(limits.beside, float)[groups]
        below = np.concatenate([below, below[-1:] + beside])
    joints: list[tuple[int, int]] = [(int(a), int(b)) for a, b in place.reshape(-1, 2)]
    count, sizes = len(new), table.sum(axis=0)
    is_empty = [a == b for a, b in joints[:count]]
    always = [(0, len(below) - 1), *joints[count:]]
    chosen = {
        number
        for number, row in enumerate(table[groups].T)
        if not is_empty[number] and not limits.are_passed(row)
    }
    for _ in range(_ROUNDS):
        parts = _parts(len(below), always + [joints[number] for number in chosen])
        gaps = _small_gaps(below, parts, limits)
        if not gaps:
            break
        for gap in gaps:
            chosen -= _to_blame(gap, chosen, joints, parts, sizes, bool(known))
    else:
        chosen.clear()
    return [number in chosen or is_empty[number] for number in range(count)]


@dataclass(frozen=True)
class _Gap:
    """A small number that is known: between two edges of a part, without the parts inside."""

    left: int
    right: int
    inside: tuple[int, ...]


def _parts(edges: int, joints: Sequence[tuple[int, int]]) -> list[int]:
    """Returns for each edge the part that it belongs to.

    Parts of which neither lies in a gap of the other are made one, as if all between were known.
    """
    parents = list(range(edges))

    def part(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for one, other in joints:
        parents[part(one)] = part(other)
    last = {part(place): place for place in range(edges)}
    within: list[int] = []
    for place in range(edges):
        here = part(place)
        if within and within[-1] == here:
            pass
        elif here in within:
            while within[-1] != here:
                other = within.pop()
                parents[other] = here
                last[here] = max(last[here], last[other])
        elif last[here] > place:
            within.append(here)
        while within and last[within[-1]] <= place:
            within.pop()
    return [part(place) for place in range(edges)]


def _small_gaps(below: Floats, parts: Sequence[int], limits: Limits) -> list[_Gap]:
    last = {part: place for place, part in enumerate(parts)}
    first: dict[int, int] = {}
    left: dict[int, int] = {}
    inside: dict[int, list[int]] = {}  # parts that lie directly in the current gap of a part
    within: list[int] = []
    found = []
    is_small: list[bool] = np.any(np.diff(below, axis=0) < limits.smallest, axis=1).tolist()
    is_small = is_small if limits.smallest > 1 else [False] * len(is_small)
    end = len(parts) - 1
    for place, part in enumerate(parts):
        if part in first:
            guests, start = inside[part], left[part]
            if place == end or guests or place - start > 1:
                rest = below[place] - below[start]
                for guest in guests:
                    rest = rest - (below[last[guest]] - below[first[guest]])
                if limits.are_passed(rest, is_last=place == end):
                    found.append(_Gap(start, place, tuple(guests)))
            elif is_small[start]:
                found.append(_Gap(start, place, ()))
        else:
            first[part] = place
            if within:
                inside[within[-1]].append(part)
            within.append(part)
        left[part], inside[part] = place, []
        if last[part] == place:
            within.pop()
    return found


def _to_blame(
    gap: _Gap,
    chosen: set[int],
    joints: Sequence[tuple[int, int]],
    parts: Sequence[int],
    sizes: Floats,
    has_known: bool,
) -> set[int]:
    """Returns the bin to withhold: the smallest of what makes the gap known.

    Where there were bins before, with edges of their own, it is the smallest at the gap.
    """
    ends = {gap.left, gap.right}
    near = [number for number in chosen if not ends.isdisjoint(joints[number])] if has_known else []
    of_parts = {parts[gap.left], *gap.inside}
    around = [number for number in chosen if parts[joints[number][0]] in of_parts]
    for candidates in (near, around):
        if candidates:
            return {min(candidates, key=lambda number: (float(sizes[number]), number))}
    return chosen.copy()  # what was known before passed, so that it is one of these
