"""How many rows of a column must have changed, told from exact numbers of before and of now.

Only a lower bound can be told without the rows themselves: a row that is added, removed or changed
moves each count, and each side of a table of counts, by one at most.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from prefect_federated.statistics.ledger import Mark
from prefect_federated.statistics.schema import Summary

_TOLERANCE = 1e-12  # a database sums in an order of its own, so that the last digits may differ


def mark_of(summary: Summary, rows: float | None) -> Mark:
    """Returns the mark of a column's exact numbers.

    Args:
        summary: Before protection.
        rows: Of its split or group.
    """
    counts = {"count": summary.count, "missing": summary.missing, "infinite": summary.infinite}
    values = {
        "mean": summary.mean, "variance": summary.variance, "min": summary.min, "max": summary.max,
    }  # fmt: skip
    tables: dict[str, dict[str, float]] = {}
    if summary.categories is not None:
        tables["categories"] = {
            name: count for name, count in summary.categories.items() if count is not None
        }
    if summary.histogram is not None:
        edges = np.array(summary.histogram.edges).tobytes()
        tables[f"histogram {hashlib.sha256(edges).hexdigest()[:32]}"] = {
            str(place): count for place, count in enumerate(summary.histogram.counts) if count
        }
    return Mark(
        counts={**_known(counts), **_known({"rows": rows})}, tables=tables, values=_known(values)
    )


def joined(mark: Mark, newer: Mark) -> Mark:
    """Returns what two marks of the same data tell together."""
    return Mark(
        counts={**mark.counts, **newer.counts},
        tables={**mark.tables, **newer.tables},
        values={**mark.values, **newer.values},
    )


def rows_changed(before: Mark, now: Mark) -> float:
    """Returns how many rows have changed at least; 0 if nothing that both tell has.

    >>> rows_changed(Mark(counts={"rows": 304}), Mark(counts={"rows": 303}))
    1.0
    """
    least = 0.0
    for name in before.counts.keys() & now.counts.keys():
        least = max(least, abs(before.counts[name] - now.counts[name]))
    for name in before.tables.keys() & now.tables.keys():
        least = max(least, _moved(before.tables[name], now.tables[name]))
    if least == 0 and any(
        not math.isclose(before.values[name], now.values[name], rel_tol=_TOLERANCE)
        for name in before.values.keys() & now.values.keys()
    ):
        return 1.0
    return least


def is_between(changed: float, enough: int) -> bool:
    """Tells whether some rows changed, but too few to tell what they are not."""
    return 0 < changed < enough


def nearest(marks: Sequence[Mark], now: Mark) -> float:
    """Returns how many rows have changed at least since the nearest of some states."""
    return min((rows_changed(mark, now) for mark in marks), default=math.inf)


def _moved(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    moves = [now.get(name, 0.0) - before.get(name, 0.0) for name in before.keys() | now.keys()]
    return max(sum(move for move in moves if move > 0), -sum(move for move in moves if move < 0))


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if number is not None}
