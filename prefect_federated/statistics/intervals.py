"""Which bins of a histogram are withheld, beside all bins of the same values ever released.

Whoever has the counts of [0, 10) and [0, 11) has that of [10, 11). So what matters is not one
histogram but all edges together. An edge is told by how many values lie below it. A released bin
joins two edges; of edges that a chain of released bins joins, the number of values between any two
is known, and so is what lies between two and in no joined edges inside. None of these numbers may
be small: bins that would make one known are withheld.

This stops what can be added and subtracted. It does not weigh what can be guessed from bounds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Below = tuple[float, ...]
"""An edge: how many values lie below it, in each group; one number where there are no groups."""

Cell = tuple[Below, Below]


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
            each group; where it is given, only these and all values together are known.
        smallest_beside: The same as `smallest`, for what these rows are part of.

    >>> releasable([], [[40, 3, 50, 60]], smallest=5)
    [False, False, True, True]
    >>> releasable([((0,), (40,))], [[43, 50]], smallest=5)
    [False, False]
    """
    bins = cells_of(counts)
    sizes = [sum(row) for row in zip(*counts, strict=True)]
    chosen = {
        place
        for place, row in enumerate(zip(*counts, strict=True))
        if not any(0 < count < smallest for count in row)
    }
    total = bins[-1][1]
    end = tuple(a + b for a, b in zip(total, beside or [0.0] * len(total), strict=True))
    last_smallest = max(smallest, smallest_beside) if end != total else smallest
    edges = sorted({(0.0,) * len(total), end, *_edges_of(bins), *_edges_of(known)}, key=sum)
    places = {edge: place for place, edge in enumerate(edges)}
    always = [(0, len(edges) - 1), *((places[low], places[high]) for low, high in known)]
    joints = [(places[low], places[high]) for low, high in bins]
    while chosen:
        parts = _parts(len(edges), always + [joints[place] for place in chosen])
        gaps = _small_gaps(edges, parts, smallest, last_smallest)
        if not gaps:
            break
        for gap in gaps:
            chosen -= _to_blame(gap, chosen, joints, parts, sizes, bool(known))
    return [place in chosen for place in range(len(bins))]


def cells_of(counts: Sequence[Sequence[float]]) -> list[Cell]:
    """Returns the bins as `releasable` must know those that are released.

    >>> cells_of([[40, 3]])
    [((0.0,), (40.0,)), ((40.0,), (43.0,))]
    """
    edges: list[Below] = [(0.0,) * len(counts)]
    for row in zip(*counts, strict=True):
        edges.append(tuple(a + b for a, b in zip(edges[-1], row, strict=True)))
    return list(itertools.pairwise(edges))


def _edges_of(cells: Sequence[Cell]) -> set[Below]:
    return {edge for cell in cells for edge in cell}


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
        if here in within:
            while within[-1] != here:
                other = within.pop()
                parents[other] = here
                last[here] = max(last[here], last[other])
        elif last[here] > place:
            within.append(here)
        while within and last[within[-1]] <= place:
            within.pop()
    return [part(place) for place in range(edges)]


def _small_gaps(
    edges: Sequence[Below], parts: Sequence[int], smallest: float, last_smallest: float
) -> list[_Gap]:
    last = {part: place for place, part in enumerate(parts)}
    first: dict[int, int] = {}
    left: dict[int, int] = {}
    inside: dict[int, list[int]] = {}  # parts that lie directly in the current gap of a part
    within: list[int] = []
    found = []
    for place, part in enumerate(parts):
        if part in first:
            spans = [(first[other], last[other]) for other in inside[part]]
            rest = [
                edges[place][group]
                - edges[left[part]][group]
                - sum(edges[end][group] - edges[start][group] for start, end in spans)
                for group in range(len(edges[0]))
            ]
            limit = last_smallest if place == len(parts) - 1 else smallest
            if any(0 < count < limit for count in rest):
                found.append(_Gap(left[part], place, tuple(inside[part])))
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
    sizes: Sequence[float],
    has_known: bool,
) -> set[int]:
    """Returns the bin to withhold: the smallest that makes it known, or where there were bins
    before, which have edges of their own, the smallest at the gap.
    """
    full = [place for place in chosen if sizes[place] > 0]  # an empty one tells no more than it is
    near = [place for place in full if {gap.left, gap.right} & set(joints[place])]
    of_parts = {parts[gap.left], *gap.inside}
    around = [place for place in full if parts[joints[place][0]] in of_parts]
    for candidates in (near if has_known else [], around):
        if candidates:
            return {min(candidates, key=lambda place: (sizes[place], place))}
    return chosen.copy()  # what was known before passed, so that it is one of these
