"""A table that is larger takes no more memory: it is read in chunks, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import csv, parquet

from benchmarks.reading import batches, write_sqlite

ROOT = Path(__file__).parents[2]
ROWS = 300_000
SMALL = 100_000
GROWTH_MB = 40.0
"""The larger table has 200,000 more rows; to read it at once takes 100 MB more, as Arrow's columns
and a frame."""

READ = """
import json, os, sys
from pathlib import Path
from benchmarks.machine import peak_rss_mb
from prefect_federated.datasets import load_datasets

datasets, peaks = load_datasets(Path(sys.argv[1])), []
for name in ("small", "large"):
    with datasets.named(name).table("all") as table:
        rows = sum(len(chunk) for chunk in table.chunks(list(table.columns), 10_000))
    peaks.append(peak_rss_mb(os.getpid()))
print(json.dumps({"rows": rows, "growth_mb": peaks[1] - peaks[0]}))
"""


def read_in_a_process(folder: Path) -> dict[str, float]:
    """Reads the datasets `small` and `large`; returns what the larger one took in addition."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("source", ["sqlite", "csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(source: str, tmp_path: Path) -> None:
    entries = []
    for name, rows in (("small", SMALL), ("large", ROWS)):
        file = tmp_path / f"{name}.{source}"
        if source == "sqlite":
            write_sqlite(file, rows)
            entries.append(
                f"  {name}: {{url: 'sqlite:///{file.name}', query: select * from visits}}"
            )
            continue
        table = pyarrow.Table.from_batches(batches(rows))
        if source == "csv":
            csv.write_csv(table, file)
        else:
            parquet.write_table(table, file, row_group_size=50_000)
        entries.append(f"  {name}: {{{source}: {file.name}}}")
    (tmp_path / "datasets.yaml").write_text("\n".join(["datasets:", *entries]))
    found = read_in_a_process(tmp_path)
    assert found["rows"] == ROWS
    assert found["growth_mb"] < GROWTH_MB
