"""CSV files, read in blocks; what a column holds is what all of its values are."""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import pyarrow
from pyarrow import csv as arrow_csv

from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.streams import StreamReader
from prefect_federated.datasets.texts import MISSING, Texts
from prefect_federated.errors import DatasetUnreadable

BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20
_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class CsvSource:
    """A CSV file in UTF-8 with a line of names first; `.gz`, `.bz2` and `.zst` are unpacked.

    Values are apart by commas, semicolons, tabs or bars, whichever the first line has most of.
    """

    path: Path

    @property
    def title(self) -> str:
        """How errors name it."""
        return f"CSV file {self.path.name}"

    @contextmanager
    def open(self) -> Iterator[StreamReader]:
        """Opens the file.

        Raises:
            DatasetUnreadable: it is not there, or has no line of names.
        """
        text = _Text(self.path, *self._separator_and_names())
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        yield StreamReader(
            text.names,
            lambda names, rows: text.read(names),
            lambda names: _kinds(text, stamp, tuple(names)),
        )

    def _separator_and_names(self) -> tuple[str, tuple[str, ...]]:
        try:
            with pyarrow.input_stream(str(self.path), compression="detect") as stream:
                start = stream.read(_HEADER_BYTES)
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetUnreadable(f"{self.title} cannot be read: {_why(error)}.") from error
        line, _, rest = start.removeprefix(codecs.BOM_UTF8).partition(b"\n")
        try:
            header = line.decode().strip("\r")
        except UnicodeDecodeError as error:
            raise DatasetUnreadable(
                f"{self.title}: the line of names is not UTF-8. Save the file as UTF-8."
            ) from error
        if not header.strip() or (not rest and len(start) == _HEADER_BYTES):
            raise DatasetUnreadable(
                f"{self.title} does not begin with a line of column names. Write one, such as "
                "age,sex,chol."
            )
        separator = max(_SEPARATORS, key=header.count)
        return separator, tuple(next(csv.reader([header], delimiter=separator)))


@dataclass(frozen=True)
class _Text:
    """The file, all columns as text."""

    path: Path
    separator: str
    names: tuple[str, ...]

    def read(self, names: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        try:
            with arrow_csv.open_csv(
                str(self.path),
                arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                arrow_csv.ParseOptions(delimiter=self.separator, newlines_in_values=True),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pyarrow.string()),
                    include_columns=list(names),
                    null_values=list(MISSING),
                    strings_can_be_null=True,
                ),
            ) as stream:
                yield from stream
        except (OSError, pyarrow.ArrowException) as error:
            _tell(self.path.name, error)


@lru_cache(maxsize=64)
def _kinds(
    text: _Text, stamp: tuple[int, int], names: tuple[str, ...]
) -> Mapping[str, Kind | Unusable]:
    """Reads the whole file once; `stamp` tells it apart from itself after a change."""
    seen = [Texts(name) for name in names]
    row = 1
    for batch in text.read(names) if names else ():
        for column, texts in zip(seen, batch.columns, strict=True):
            column.add(texts, row)
        row += batch.num_rows
    return {column.name: column.kind() for column in seen}


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "there is no such file" if "No such file" in str(error) else type(error).__name__


def _tell(name: str, error: Exception) -> NoReturn:
    """Raises what is wrong with the file, without the values that pyarrow quotes."""
    said = str(error)
    row = re.search(r"Row #(\d+)", said)
    where = f" in line {row[1]}" if row else ""
    counts = re.search(r"Expected (\d+) columns, got (\d+)", said)
    if counts:
        raise DatasetUnreadable(
            f"CSV file {name}: {counts[2]} values{where}, the line of names has {counts[1]}. "
            "Correct the line; a value that holds the separator stands in double quotes."
        ) from None
    if "UTF8" in said:
        raise DatasetUnreadable(
            f"CSV file {name} is not UTF-8{where}. Save the file as UTF-8."
        ) from None
    long = "A line is longer than 1 MiB, or a quote is not closed" if "straddling" in said else ""
    raise DatasetUnreadable(
        f"CSV file {name} cannot be read{where} ({type(error).__name__}). "
        f"{long or 'Check that it is a CSV file that is whole'}."
    ) from None
