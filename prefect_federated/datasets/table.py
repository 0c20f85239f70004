"""The rows of one split of a dataset, column by column, in chunks that fit in memory."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.sources import Aggregate, Part, Reader
from prefect_federated.errors import DatasetNotFound

if TYPE_CHECKING:
    import pandas as pd

CELLS = 2_500_000
"""Values of a chunk at most: 20 MB as float64."""
SHOWN = 30
"""Names that an error lists at most."""


class Table:
    """The rows of one split while its source is open; `Dataset.table` opens one.

    Args:
        title: How errors name it: "dataset 'heart', split 'train'".
        reader: The open source.
        columns: Column -> what it holds: those that may be used at all.
        unusable: Column -> why it cannot be used: in words, and what the site can do about it.
        part: Which of the source's rows belong to the split; None for all.
    """

    def __init__(
        self,
        title: str,
        reader: Reader,
        columns: Mapping[str, Kind],
        unusable: Mapping[str, str],
        part: Part | None = None,
    ) -> None:
        self.title = title
        self.columns = columns
        self.unusable = unusable
        self._reader = reader
        self._part = part

    def chunks(self, columns: Sequence[str], rows: int = 100_000) -> Iterator["pd.DataFrame"]:
        """Yields the columns in order, with up to `rows` rows at a time.

        Numbers are float64; truth values are 0 and 1, dates are seconds since 1970 in UTC, both
        float64; NaN is missing, and infinite values stay. Categories are pandas categoricals of
        text, with categories of each chunk's own. Each call reads the source once.

        Args:
            columns: Names; those without values at all (`empty`) are float64 with only NaN.
            rows: At most in a chunk, 1 or more; fewer where there are more than 25 columns.

        Raises:
            DatasetNotFound: a column is not among those that may be used.
            DatasetUnreadable: the source broke off.
            MixedTypes: a value is not of its column's kind.
        """
        import pandas as pd

        from prefect_federated.datasets.cells import cells

        kinds = {name: self.columns[name] for name in self._known(columns)}
        rows = max(1, min(rows, CELLS // max(1, len(kinds))))
        read = kinds or dict(list(self.columns.items())[:1])  # no columns: their number of rows
        row = 1
        for batch in self._reader.batches(read, rows, self._part) if read else ():
            for start in range(0, batch.num_rows, rows):
                piece = batch.slice(start, rows)
                found = {
                    name: cells(name, piece.column(position), kind, row)
                    for position, (name, kind) in enumerate(kinds.items())
                }
                yield pd.DataFrame(found, index=range(piece.num_rows), columns=list(kinds))
                row += piece.num_rows

    def aggregates(self, columns: Sequence[str]) -> Mapping[str, Aggregate] | None:
        """Returns what the database computed of the columns itself, in one query.

        A column that the database cannot compute, such as a date that SQLite keeps as text, is left
        out: read its chunks. SQLite takes about as long for this as for reading all rows.

        Returns:
            Column -> its aggregate; None where the source is no database.

        Raises:
            DatasetNotFound: a column is not among those that may be used.
            DatasetUnreadable: the database did not answer.
            MixedTypes: a value is not of its column's kind.
        """
        kinds = {name: self.columns[name] for name in self._known(columns)}
        return self._reader.aggregates(kinds, self._part)

    def _known(self, columns: Sequence[str]) -> Sequence[str]:
        for name in columns:
            if name not in self.columns:
                why = self.unusable.get(name)
                raise DatasetNotFound(
                    f"{self.title}: {why}"
                    if why
                    else f"{self.title} has no column {name!r} that may be used. "
                    f"{near(name, self.columns)}"
                )
        return columns


def near(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the names that come near, and one with those there are."""
    names = list(known)
    if not names:
        return "There is none."
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{close(name, names)}There is {', '.join(names[:SHOWN])}{more}."


def close(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the names that come near, and a space; nothing if none does."""
    by_small = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), by_small, n=2)
    return f"Did you mean {' or '.join(repr(by_small[each]) for each in found)}? " if found else ""
