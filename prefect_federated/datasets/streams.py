"""Sources that are read from the beginning to the end: files and frames. No database."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow
import pyarrow.compute as pc

from prefect_federated.datasets.cells import as_text
from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.sources import Aggregate, Part

DISTINCT_ROWS = 100_000


@dataclass(frozen=True)
class StreamReader:
    """A `Reader` of what can only be read through.

    Args:
        names: The names of all columns.
        read: Named columns and rows of a batch -> the batches, from the beginning.
        look: Named columns -> what they hold.
    """

    names: Sequence[str]
    read: Callable[[Sequence[str], int], Iterator[pyarrow.RecordBatch]]
    look: Callable[[Sequence[str]], Mapping[str, Kind | Unusable]]

    def batches(
        self, columns: Mapping[str, Kind], rows: int, part: Part | None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yields columns; only the rows of `part` if given."""
        wanted = list(columns)
        if part is None:
            yield from self.read(wanted, rows)
            return
        for batch in self.read(list(dict.fromkeys([*wanted, part.column])), rows):
            is_in_part = pc.equal(as_text(batch.column(part.column)), part.value)
            yield batch.select(wanted).filter(is_in_part)

    def distinct(self, name: str, most: int) -> Sequence[str | None]:
        """Returns the different values of a column as text; stops once there are too many."""
        found: dict[str | None, None] = {}
        for batch in self.read([name], DISTINCT_ROWS):
            found |= dict.fromkeys(pc.unique(as_text(batch.column(name))).to_pylist())
            if len(found) > most:
                break
        return list(found)

    def aggregates(
        self, columns: Mapping[str, Kind], part: Part | None
    ) -> Mapping[str, Aggregate] | None:
        """Returns None: nobody computes anything before the rows are read."""
        return None
