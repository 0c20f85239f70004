"""What a source of rows is: a file, a database or a function, read in batches of Arrow columns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from prefect_federated.datasets.kinds import Kind, Unusable

if TYPE_CHECKING:
    import pyarrow

MOST_CATEGORIES = 1_000
"""Categories that a database counts at most; a column with more is told as too many."""


@dataclass(frozen=True)
class Part:
    """The rows of a source that have a value in a column.

    Args:
        column: The column's name.
        value: The value, as text.
    """

    column: str
    value: str


@dataclass(frozen=True)
class Aggregate:
    """What a database computed of one column itself.

    Args:
        kind: What the column holds.
        count: Values that are there and finite.
        missing: Values that are not there.
        infinite: Values that are +inf or -inf.
        min: The smallest finite value; None for categories, and where there is no value.
        max: The largest.
        sum: Of the finite values, in double precision.
        categories: Rows a category; empty for numbers, and where there are too many.
        has_too_many_categories: Whether there are more than 1,000.
    """

    kind: Kind
    count: int
    missing: int
    infinite: int = 0
    min: float | None = None
    max: float | None = None
    sum: float | None = None
    categories: Mapping[str, int] = field(default_factory=dict)
    has_too_many_categories: bool = False


class Reader(Protocol):
    """A source while it is open; what it raises is `DatasetUnreadable`, and says which source."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all columns, in order; a name twice if the source has it twice."""
        ...

    def look(self, names: Sequence[str]) -> Mapping[str, Kind | Unusable]:
        """Returns what the named columns hold."""
        ...

    def distinct(self, name: str, most: int) -> Sequence[str | None]:
        """Returns the different values of a column as text; no more of them than `most` + 1."""
        ...

    def batches(
        self, columns: Mapping[str, Kind], rows: int, part: Part | None
    ) -> Iterator["pyarrow.RecordBatch"]:
        """Yields columns, in batches of about so many rows; only the rows of `part` if given."""
        ...

    def aggregates(
        self, columns: Mapping[str, Kind], part: Part | None
    ) -> Mapping[str, Aggregate] | None:
        """Returns what the source computed itself; None where it is no database."""
        ...


class Source(Protocol):
    """Where the rows of a split come from."""

    @property
    def title(self) -> str:
        """How errors name it, without a password: "CSV file heart.csv"."""
        ...

    def open(self) -> AbstractContextManager[Reader]:
        """Opens the source."""
        ...
