"""How fast a site reads a large table of a database: `python -m benchmarks.reading --json FILE`.

The table has 20 columns: 12 of numbers with a twentieth missing, 4 of whole numbers, 3 of
categories, 1 of times. Each source is read by a process of its own, through a `datasets.yaml`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow

from benchmarks.machine import describe_machine, peak_rss_mb
from prefect_federated.datasets import load_datasets
from tests.integration.postgresql import database

SOURCES = ("sqlite", "postgresql", "parquet", "csv")
COLUMNS = (
    *(f"x{number}" for number in range(12)),
    *(f"i{number}" for number in range(4)),
    *(f"c{number}" for number in range(3)),
    "seen",
)
_BATCH_ROWS = 250_000
_WARDS = np.array(["cardiology", "surgery", "neurology", "paediatrics", "urology"])


def batches(
    rows: int, seed: int = 0, *, times_as_text: bool = False
) -> Iterator[pyarrow.RecordBatch]:
    """Yields the rows of the table; the same for the same seed.

    Args:
        rows: How many, in all.
        seed: Of the random numbers; sites have different ones.
        times_as_text: Whether times are ISO text, as SQLite keeps them.
    """
    random = np.random.default_rng(seed)
    for start in range(0, rows, _BATCH_ROWS):
        count = min(_BATCH_ROWS, rows - start)
        arrays = []
        for number in range(12):
            values = random.normal(loc=number, scale=1 + number, size=count)
            arrays.append(pyarrow.array(values, mask=random.random(count) < 0.05))
        arrays += [pyarrow.array(random.integers(0, 10 ** (2 + n), count)) for n in range(4)]
        arrays += [pyarrow.array(_WARDS[random.integers(0, 3 + n, count)]) for n in range(3)]
        seconds = np.datetime64("2020-01-01", "s") + random.integers(0, 10**8, count)
        times = pyarrow.array(seconds)
        arrays.append(times.cast(pyarrow.string()) if times_as_text else times)
        yield pyarrow.RecordBatch.from_arrays(arrays, list(COLUMNS))


def write_sqlite(file: Path, rows: int, seed: int = 0) -> None:
    """Writes the table `visits` into a new SQLite file."""
    from adbc_driver_sqlite.dbapi import connect

    with connect(f"file:{file}") as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("visits", _reader(rows, seed, times_as_text=True))
        connection.commit()


def write_postgresql(url: str, rows: int, seed: int = 0, table: str = "visits") -> None:
    """Writes the table into a PostgreSQL database."""
    from adbc_driver_postgresql.dbapi import connect

    with connect(url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(table, _reader(rows, seed))
        connection.commit()


def _reader(rows: int, seed: int, *, times_as_text: bool = False) -> pyarrow.RecordBatchReader:
    made = batches(rows, seed, times_as_text=times_as_text)
    first = next(made)

    def all_of_them() -> Iterator[pyarrow.RecordBatch]:
        yield first
        yield from made

    return pyarrow.RecordBatchReader.from_batches(first.schema, all_of_them())


def _entry(source: str, folder: Path, rows: int, stack: ExitStack) -> str:
    """Writes the table as a source; returns its entry in `datasets.yaml`."""
    if source == "sqlite":
        write_sqlite(folder / "visits.db", rows)
        return "{url: 'sqlite:///visits.db', query: SELECT * FROM visits}"
    if source == "postgresql":
        url = stack.enter_context(database()).replace("+asyncpg", "")
        write_postgresql(url, rows)
        return f"{{url: '{url}', query: SELECT * FROM visits}}"
    file = folder / f"visits.{source}"
    if source == "parquet":
        from pyarrow import parquet

        with parquet.ParquetWriter(file, next(batches(1)).schema) as parquet_writer:
            for batch in batches(rows):
                parquet_writer.write_batch(batch)
    else:
        from pyarrow import csv

        with csv.CSVWriter(file, next(batches(1)).schema) as csv_writer:
            for batch in batches(rows):
                csv_writer.write_batch(batch)
    return f"{{{source}: {file.name}}}"


def read(folder: Path, source: str) -> dict[str, object]:
    """Returns how long it takes to read all columns once, and to have the database sum them up."""
    began, began_cpu, rows = time.perf_counter(), time.process_time(), 0
    with load_datasets(folder).named(source).table("all") as table:
        opened = time.perf_counter()
        for chunk in table.chunks(list(table.columns)):
            rows += len(chunk)
        ended, ended_cpu = time.perf_counter(), time.process_time()
        has_computed = table.aggregates(list(table.columns)) is not None
    return {
        "source": source,
        "rows": rows,
        "columns": len(table.columns),
        "open_s": round(opened - began, 3),
        "read_s": round(ended - opened, 3),
        "cpu_s": round(ended_cpu - began_cpu, 3),
        "peak_rss_mb": round(peak_rss_mb(os.getpid())),
        "aggregates_s": round(time.perf_counter() - ended, 3) if has_computed else None,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_500_000)
    parser.add_argument("--source", choices=[*SOURCES, "all"], default="all")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        print(json.dumps(read(chosen.read, chosen.source)))
        return
    result: dict[str, object] = {"machine": describe_machine(), "runs": []}
    runs = []
    for source in SOURCES if chosen.source == "all" else [chosen.source]:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            entry = _entry(source, folder, chosen.rows, stack)
            (folder / "datasets.yaml").write_text(f"datasets:\n  {source}: {entry}\n")
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.reading", "--source", source, "--read", name],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        runs.append(json.loads(done.stdout))
        print(json.dumps(runs[-1]))
    result["runs"] = runs
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
