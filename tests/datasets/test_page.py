"""The page "Datasets of a site" does what it says: its files are loaded, their tables read."""

import importlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from adbc_driver_postgresql.dbapi import connect

from prefect_federated.datasets import load_datasets
from prefect_federated.datasets.file import DatasetEntry

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
FILES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ROWS = pd.DataFrame(
    {
        "age": [40, 50, 61], "ward": [1, 2, 1], "seen": pd.to_datetime(["2024-01-01"] * 3),
        "name": ["a", "b", "c"], "insurance_number": [7, 8, 9], "part": ["train", "test", "train"],
    }
)  # fmt: skip
EXPECTED: dict[str, list[tuple[tuple[str, ...], str, str]]] = {
    # dataset: its splits, and a column that may be used with its kind
    "heart": [(("all",), "age", "numeric"), (("train", "test"), "age", "numeric")],
    "visits": [(("test", "train"), "ward", "categorical")],
    "stays": [(("all",), "ward", "numeric")],
    "wards": [(("all",), "admitted", "datetime")],
    "admissions": [(("test", "train"), "ward", "numeric")],
    "measured": [(("all",), "pulse", "numeric")],
}


@pytest.fixture
def folder(tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a site's folder with all that the page's files speak of."""
    for name in ("heart.csv", "train.csv", "test.csv", "stays.csv.gz"):
        ROWS.to_csv(tmp_path / name, index=False)
    ROWS.to_parquet(tmp_path / "visits.parquet")
    with closing(sqlite3.connect(tmp_path / "clinic.db")) as connection:
        connection.execute("CREATE TABLE stays (age INTEGER, ward TEXT, admitted TEXT)")
        connection.execute("INSERT INTO stays VALUES (40, 'north', '2024-01-31')")
        connection.commit()
    with connect(empty_database) as server, server.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS patients (id int, age int)")
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS admissions "
            "(patient int, ward int, admitted date, part text)"
        )
        cursor.execute("INSERT INTO patients VALUES (1, 40), (2, 50)")
        cursor.execute(
            "INSERT INTO admissions VALUES (1, 3, now(), 'train'), (2, 4, now(), 'test')"
        )
        server.commit()
    code = re.search(r'```python\n("""(\w+)\.py: .*?)```', PAGE, re.DOTALL)
    assert code is not None
    (tmp_path / f"{code[2]}.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setenv("CLINIC_DB_PASSWORD", "secret")
    return tmp_path


def test_each_file_of_the_page_names_datasets_that_can_be_read(
    folder: Path, empty_database: str
) -> None:
    left = {name: list(found) for name, found in EXPECTED.items()}
    for text in FILES:
        there = text.replace("postgresql://reader@db.hospital.example/clinic", empty_database)
        (folder / "datasets.yaml").write_text(there)
        datasets = load_datasets(folder)
        for name in datasets.names:
            dataset = datasets.named(name)
            splits, column, kind = left[name].pop(0)
            assert dataset.splits == splits
            for split in splits:
                with dataset.table(split) as table:
                    assert table.columns[column] == kind
                    assert not {"name", "insurance_number"} & set(table.columns) or name == "heart"
                    rows = sum(map(len, table.chunks(list(table.columns))))
                    assert rows > 0 or name == "measured"
    assert not any(left.values())


def test_policies_of_the_page_are_the_stricter_of_two(folder: Path) -> None:
    (folder / "datasets.yaml").write_text(FILES[1])
    datasets = load_datasets(folder)
    assert {datasets.named(name).policy.minimum_rows for name in datasets.names} == {50}
    assert datasets.named("visits").policy.small_cell == 10
    assert datasets.named("visits").allowed == ("age", "ward", "seen")


def test_the_page_speaks_of_every_key_of_a_dataset() -> None:
    for key in DatasetEntry.model_fields:
        assert f"`{key}`" in PAGE or f"`{key}:" in PAGE, key
