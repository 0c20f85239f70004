"""Which bins of a histogram are withheld, beside all bins of the same values ever released.

Whoever has the counts of [0, 10) and [0, 11) has that of [10, 11). So what matters is not one
histogram but all edges together. An edge is told by how many values lie below it. A released bin
joins two edges; of edges that a chain of released bins joins, the number of values between any two
is known, and so is what lies between two and in no joined edges inside. None of these numbers may
be small: bins that would make one known are withheld.

This stops what can be added and subtracted. It does not weigh what can be guessed from bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Below = tuple[float, ...]
"""An edge: how many values lie below it, in each group; one number where there are no groups."""

Cell = tuple[Below, Below]

Floats = NDArray[np.float64]


def releasable(
    known: Sequence[Cell],
    counts: Sequence[Sequence[float]],
    smallest: float,
    beside: Sequence[float] | None = None,
    smallest_beside: float = 0,
) -> list[bool]:
    """Returns for each bin whether it may be released.

    Args:
        known: What was released of the same values in the same groups.
        counts: `(n_groups, n_bins)`; no value is outside of the bins.
        smallest: No number that can be computed may be above 0 and below this.
        beside: Rows that are in no bin and whose number is withheld, such as missing values, in
            each group; where there are any, only these and all values together are known.
        smallest_beside: The same as `smallest`, for what these rows are part of.

    >>> releasable([], [[40, 3, 50, 60]], smallest=5)
    [False, False, True, True]
    >>> releasable([((0,), (40,))], [[43, 50]], smallest=5)
    [False, False]
    """
    table = np.asarray(counts, float)
    edges = _edges(table)
    end = edges[-1] + (0.0 if beside is None else np.asarray(beside, float))
    limits = _Limits(smallest, smallest if (end == edges[-1]).all() else smallest_beside)
    sizes = table.sum(axis=0)
    is_chosen = ~((table > 0) & (table < smallest)).any(axis=0)
    before = np.asarray(known, float).reshape(len(known), 2, len(table))
    # Of two edges, the one with more values below it has so in each group: their sums tell which.
    told = np.concatenate([edges, end[None], before[:, 0], before[:, 1]])
    _, first, place = np.unique(told.sum(axis=1), return_index=True, return_inverse=True)
    below, bins = told[first], len(sizes)
    always = [(0, len(first) - 1)]
    always += zip(*np.split(place[bins + 2 :], 2), strict=True)
    joints = list(zip(place[:bins].tolist(), place[1 : bins + 1].tolist(), strict=True))
    chosen = {int(number) for number in np.flatnonzero(is_chosen & (sizes > 0))}
    while chosen:
        parts = _parts(len(below), always + [joints[number] for number in chosen])
        gaps = _small_gaps(below, parts, limits)
        if not gaps:
            break
        for gap in gaps:
            chosen -= _to_blame(gap, chosen, joints, parts, sizes, bool(known))
    # An empty bin tells no more than that it is empty.
    return [number in chosen or bool(sizes[number] == 0) for number in range(bins)]


def cells_of(counts: Sequence[Sequence[float]], released: Sequence[bool]) -> list[Cell]:
    """Returns the bins that are released as `releasable` must know them; not those without values.

    >>> cells_of([[40, 0, 7]], [True, True, True])
    [((0.0,), (40.0,)), ((40.0,), (47.0,))]
    """
    edges = [tuple(edge) for edge in _edges(np.asarray(counts, float)).tolist()]
    return [
        (edges[number], edges[number + 1])
        for number, is_out in enumerate(released)
        if is_out and edges[number] != edges[number + 1]
    ]


def _edges(table: Floats) -> Floats:
    """Returns how many values lie below each edge, `(n_bins + 1, n_groups)`."""
    start = np.zeros((1, len(table)))
    return np.concatenate([start, np.cumsum(table, axis=1).T])


@dataclass(frozen=True)
class _Limits:
    smallest: float
    of_last: float

    def are_passed(self, numbers: Floats, is_last: bool = False) -> bool:
        limit = max(self.smallest, self.of_last) if is_last else self.smallest
        return bool(((numbers > 0) & (numbers < limit)).any())


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


def _small_gaps(below: Floats, parts: Sequence[int], limits: _Limits) -> list[_Gap]:
    last = {part: place for place, part in enumerate(parts)}
    first: dict[int, int] = {}
    left: dict[int, int] = {}
    inside: dict[int, list[int]] = {}  # parts that lie directly in the current gap of a part
    within: list[int] = []
    found = []
    steps = np.diff(below, axis=0)
    is_small: list[bool] = np.any((steps > 0) & (steps < limits.smallest), axis=1).tolist()
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
