"""A site's folder with a `datasets.yaml`, as a test writes it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from prefect_federated.datasets import Datasets, Table, load_datasets
from tests.integration.postgresql import database

Load = Callable[[str], Datasets]


@pytest.fixture(scope="session")
def empty_database() -> Iterator[str]:
    """Starts one PostgreSQL server for the tests of this folder; returns a database's URL."""
    with database() as url:
        yield url.replace("+asyncpg", "")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes what stands under `datasets:` into the site's file, and loads it."""

    def write(entries: str) -> Datasets:
        text = "\n".join(f"  {line}" for line in entries.strip().splitlines())
        (tmp_path / "datasets.yaml").write_text(f"datasets:\n{text}\n")
        return load_datasets(tmp_path)

    return write


def whole(table: Table, rows: int = 100_000) -> pd.DataFrame:
    """Returns all chunks of all columns as one frame; categories as text."""
    chunks = [
        chunk.astype({n: "str" for n, kind in table.columns.items() if kind == "categorical"})
        for chunk in table.chunks(list(table.columns), rows)
    ]
    return pd.concat(chunks, ignore_index=True)
