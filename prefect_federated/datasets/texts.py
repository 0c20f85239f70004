"""What a column of text holds: numbers, truth values, ISO dates, or categories.

For sources whose columns have no types of their own: CSV files and SQLite.
"""

from dataclasses import dataclass, field

import pyarrow
import pyarrow.compute as pc

from prefect_federated.datasets.kinds import CALLED, Kind, Unusable

MISSING = ("", "NA", "NaN", "nan")
"""Texts that stand for a missing value."""

# RE2's syntax. Spaces around a value do no harm.
PATTERNS: dict[Kind, str] = {
    "numeric": r"^\s*[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|(?i:inf(inity)?))\s*$",
    "boolean": r"^\s*(?i:true|false)\s*$",
    "datetime": r"^\s*\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.]\d{1,6})?)?"
    r"(Z|[-+]\d{2}(:?\d{2})?)?)?\s*$",
}


@dataclass
class Texts:
    """What has been seen of one column of text.

    Args:
        name: The column's name.
        first_row: Kind of value -> the row of the first one, from 1.
        seen: Kind of value -> how many different ones, summed over what was added.
    """

    name: str
    first_row: dict[Kind, int] = field(default_factory=dict)
    seen: dict[Kind, int] = field(default_factory=dict)

    def add(self, texts: pyarrow.Array, row: int) -> None:
        """Looks at more of the column.

        Args:
            texts: Values; null, or one of `MISSING`, for those that are missing.
            row: The row of the first of them.
        """
        texts = without_missing(texts)
        if texts.null_count == len(texts):
            return
        if self.seen.keys() <= {"numeric"} and _are_numbers(texts):
            self._count("numeric", 1, pc.is_valid(texts), row)
            return
        left = pc.unique(texts.drop_null())
        for kind, pattern in PATTERNS.items():
            fits = pc.match_substring_regex(left, pattern)
            of_kind, left = left.filter(fits), left.filter(pc.invert(fits))
            self._count(kind, len(of_kind), pc.is_in(texts, of_kind), row)
        self._count("categorical", len(left), pc.is_in(texts, left), row)

    def _count(self, kind: Kind, number: int, where: pyarrow.Array, row: int) -> None:
        if not number:
            return
        self.seen[kind] = self.seen.get(kind, 0) + number
        if kind not in self.first_row:
            self.first_row[kind] = row + pc.index(where, True).as_py()

    def kind(self) -> Kind | Unusable:
        """Returns what the column holds, or what is mixed in it and from which row on."""
        kinds = set(self.seen)
        if not kinds:
            return "empty"
        if len(kinds) == 1:
            return next(iter(kinds))
        if kinds == {"boolean", "categorical"}:  # "true" is a word like others
            return "categorical"
        expected, *others = sorted(kinds, key=lambda kind: (-self.seen[kind], CALLED[kind]))
        other = min(others, key=lambda kind: self.first_row[kind])
        return Unusable(
            mixed_types(self.name, expected, CALLED[other], f"row {self.first_row[other]:,}")
        )


def mixed_types(name: str, expected: Kind, found: str, row: str) -> str:
    """Returns what a person is told of a value that does not fit its column."""
    return (
        f"column {name!r}: {row} holds {found} where {CALLED[expected]} were expected: mixed "
        f"types. Correct the value, or write `kinds: {{{name}: categorical}}` in the dataset's "
        "entry if the values are names of something."
    )


def without_missing(texts: pyarrow.Array) -> pyarrow.Array:
    """Returns the texts without spaces around them, and null for those that mean missing."""
    trimmed = pc.utf8_trim_whitespace(texts)
    missing = pc.is_in(trimmed, pyarrow.array(MISSING, trimmed.type))
    if not pc.any(missing).as_py():
        return trimmed
    return pc.if_else(missing, pyarrow.scalar(None, trimmed.type), trimmed)


def _are_numbers(texts: pyarrow.Array) -> bool:
    try:
        pc.cast(texts, pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return False
    return True
