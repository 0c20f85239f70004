"""Parquet files, read in batches; a column holds what its type says."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from prefect_federated.datasets.cells import kind_of
from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.streams import StreamReader
from prefect_federated.errors import DatasetUnreadable


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file."""

    path: Path

    @property
    def title(self) -> str:
        """How errors name it."""
        return f"Parquet file {self.path.name}"

    @contextmanager
    def open(self) -> Iterator[StreamReader]:
        """Opens the file.

        Raises:
            DatasetUnreadable: it is not there, or is no Parquet file.
        """
        try:
            file = parquet.ParquetFile(self.path, pre_buffer=False)
        except FileNotFoundError:
            raise DatasetUnreadable(
                f"{self.title}: there is no such file. Check `parquet`, whose path is relative to "
                "the folder of datasets.yaml."
            ) from None
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetUnreadable(
                f"{self.title} cannot be opened ({type(error).__name__}). Check that it is a "
                "Parquet file that is whole."
            ) from None
        with file:
            yield StreamReader(
                file.schema_arrow.names,
                lambda names, rows: self._read(file, names, rows),
                lambda names: _kinds(file, names),
            )

    def _read(
        self, file: parquet.ParquetFile, names: Sequence[str], rows: int
    ) -> Iterator[pyarrow.RecordBatch]:
        try:
            for batch in file.iter_batches(rows, columns=list(names), use_threads=False):
                yield batch.select(list(names))
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetUnreadable(
                f"{self.title} cannot be read to its end ({type(error).__name__}). Check that it "
                "is whole."
            ) from None


def _kinds(file: parquet.ParquetFile, names: Sequence[str]) -> Mapping[str, Kind | Unusable]:
    kinds = {name: kind_of(name, file.schema_arrow.field(name).type) for name in names}
    empty = _without_values(file)
    return {name: "empty" if name in empty else kind for name, kind in kinds.items()}


def _without_values(file: parquet.ParquetFile) -> set[str]:
    """Returns the columns of which the file itself says that they are null in all rows."""
    nulls: dict[str, int] = {}
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group)
        for place in range(rows.num_columns):
            column = rows.column(place)
            if column.statistics is not None and column.statistics.has_null_count:
                name = column.path_in_schema
                nulls[name] = nulls.get(name, 0) + column.statistics.null_count
    return {name for name, count in nulls.items() if 0 < count == file.metadata.num_rows}
