"""Which categories and groups are withheld: the small ones, and as many more as hide them.

One small number that is withheld is still the total minus all others. So the next smallest goes
with it, until what is withheld is large enough together. A table of categories by group has totals
on both sides: a category that is small in one group is withheld in all, so that no row and no
column of the table leaves a single gap.
"""

from collections.abc import Mapping, Sequence

Counts = Sequence[float]
"""Rows of one category, in each group; of one number where there are no groups."""


def is_small(count: float, smallest: float) -> bool:
    """Tells whether a number of rows is too small to release; none at all is not."""
    return 0 < count < smallest


def withheld_cells(
    cells: Mapping[str, Counts],
    smallest: float,
    hidden: Counts | None = None,
    smallest_hidden: float = 0,
) -> set[str]:
    """Returns the names of the cells to withhold.

    Args:
        cells: Name -> counts, `(n_groups,)`, whose sums in each group are known to whoever asks.
        smallest: What a released count, and the sum of all withheld ones, must not be below.
        hidden: A further cell that is withheld in any case, such as missing values.
        smallest_hidden: What the sum must not be below where there is something in that cell.

    >>> sorted(withheld_cells({"a": [90], "b": [30], "c": [2]}, smallest=5))
    ['b', 'c']
    """
    groups = len(next(iter(cells.values()), hidden or []))
    extra = list(hidden) if hidden is not None else [0.0] * groups
    withheld = {name for name, row in cells.items() if any(is_small(n, smallest) for n in row)}
    rest = sorted(cells.keys() - withheld, key=lambda name: (sum(cells[name]), name))
    rest = [name for name in rest if any(cells[name])]
    while rest and not _is_hidden([cells[name] for name in withheld], extra, smallest,
                                  smallest_hidden):  # fmt: skip
        withheld.add(rest.pop(0))
    return withheld


def _is_hidden(
    withheld: Sequence[Counts], extra: Counts, smallest: float, smallest_hidden: float
) -> bool:
    if len(withheld) == 1 and not all(extra):
        return False  # the only gap in a row or in a column
    for place, beside in enumerate(extra):
        total = beside + sum(row[place] for row in withheld)
        if is_small(total, max(smallest, smallest_hidden if beside else 0)):
            return False
    return True


def withheld_groups(rows: Mapping[str, float], beside: float, minimum: float) -> set[str]:
    """Returns the names of the groups to withhold, so that all of them together are enough rows.

    Args:
        rows: Rows, or values of a column, in each group.
        beside: Rows in none of these groups, such as where the grouping column has no value.
        minimum: What a group, and all withheld rows together, must not be below.

    >>> sorted(withheld_groups({"a": 90, "b": 30, "c": 2}, beside=0, minimum=20))
    ['b', 'c']
    """
    return withheld_cells(
        {name: [count] for name, count in rows.items()}, minimum, [beside], minimum
    ) | {name for name, count in rows.items() if count < minimum}
