"""What a database computed itself, out of the rows of the one statement that asked for it."""

import math
from collections.abc import Iterable, Mapping, Sequence

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.sources import MOST_CATEGORIES, Aggregate
from prefect_federated.datasets.texts import mixed_types
from prefect_federated.errors import MixedTypes


def read_aggregates(
    rows: Sequence[Sequence[object]],
    kinds: Mapping[str, Kind],
    numbers: Sequence[str],
    categories: Sequence[str],
) -> dict[str, Aggregate]:
    """Returns the aggregates that `Query.aggregates` asked for; of empty columns, too.

    Args:
        rows: The statement's rows.
        kinds: Column -> what it holds.
        numbers: The columns that were asked for as numbers, in order.
        categories: The columns whose categories were asked for, in order.

    Raises:
        MixedTypes: there is text where numbers were expected.
    """
    first, *counted = rows
    number_of_rows, wide = _whole(first[2]), first[3:]
    found = {
        name: Aggregate(kind, 0, number_of_rows) for name, kind in kinds.items() if kind == "empty"
    }
    for at, name in enumerate(numbers):
        found[name] = _of_numbers(name, kinds[name], number_of_rows, wide[5 * at : 5 * at + 5])
    for place, name in enumerate(categories):
        pairs = [(row[1], _whole(row[2])) for row in counted if _whole(row[0]) == place]
        present = _whole(wide[5 * len(numbers) + place])
        found[name] = _of_categories(number_of_rows, present, pairs)
    return found


def has_infinite(aggregates: Iterable[Aggregate]) -> bool:
    """Whether an infinite value is among the numbers, and so in their sums."""
    return any(
        each is not None and math.isinf(each) for one in aggregates for each in (one.min, one.max)
    )


def _of_numbers(name: str, kind: Kind, rows: int, values: Sequence[object]) -> Aggregate:
    present, count, (low, high, total) = _whole(values[0]), _whole(values[1]), values[2:]
    if any(isinstance(each, str | bytes) for each in (low, high)):  # SQLite puts text after numbers
        raise MixedTypes(mixed_types(name, kind, "text", "a row"), name)
    return Aggregate(
        kind,
        count,
        missing=rows - present,
        infinite=present - count,
        min=float(str(low)) if count else None,
        max=float(str(high)) if count else None,
        sum=float(str(total)) if count and total is not None else None,  # of inf and -inf
    )


def _of_categories(rows: int, present: int, pairs: Sequence[tuple[object, int]]) -> Aggregate:
    if len(pairs) > MOST_CATEGORIES:
        return Aggregate("categorical", present, rows - present, has_too_many_categories=True)
    named = {str(name): n for name, n in pairs if name is not None and str(name).strip()}
    count = sum(named.values())  # empty texts are missing ones
    return Aggregate("categorical", count, rows - count, categories=named)


def _whole(value: object) -> int:
    return int(str(value))
