"""SQLite: through ADBC and through SQLAlchemy's own driver, which agree."""

import math
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefect_federated.datasets import Dataset, adbc, database
from prefect_federated.errors import DatasetNotFound, DatasetUnreadable, MixedTypes
from tests.datasets.conftest import Load, whole

DRIVERS = ["sqlite", "sqlite+pysqlite"]
ROWS = 500


def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    values = random.normal(1e9, 1, ROWS)
    values[::7] = np.nan
    return pd.DataFrame(
        {
            "x": values,
            "n": random.integers(0, 10, ROWS),
            "ward": random.choice(["north", "south", None], ROWS),  # type: ignore[arg-type]
            "seen": [f"2024-01-{1 + day % 28:02} 08:30:00" for day in range(ROWS)],
            "nothing": [None] * ROWS,
            "split": ["test" if row % 4 == 0 else "train" for row in range(ROWS)],
        }
    )


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    file = tmp_path / "vi sits#1.db"
    with closing(sqlite3.connect(file)) as connection:
        frame().to_sql("visits", connection, index=False)
    return file


def entry(driver: str, query: str = "SELECT * FROM visits", more: str = "") -> str:
    return f"visits: {{url: '{driver}:///vi sits#1.db', query: \"{query}\"{more}}}"


@pytest.fixture(params=DRIVERS)
def dataset(request: pytest.FixtureRequest, visits: Path, load: Load) -> Dataset:
    return load(entry(request.param)).named("visits")


def test_columns_and_rows_are_the_tables(dataset: Dataset) -> None:
    with dataset.table("all") as table:
        assert table.columns == {
            "x": "numeric", "n": "numeric", "ward": "categorical", "seen": "datetime",
            "nothing": "empty", "split": "categorical",
        }  # fmt: skip
        found, expected = whole(table, rows=60), frame()
        assert max(map(len, table.chunks(["x"], 60))) <= 60
    pd.testing.assert_series_equal(found["x"], expected["x"])
    assert (found["n"] == expected["n"]).all()
    assert found["ward"].fillna("?").tolist() == expected["ward"].fillna("?").tolist()
    seconds = (pd.to_datetime(expected["seen"]) - pd.Timestamp(0)).dt.total_seconds()
    assert (found["seen"] == seconds).all()
    assert found["nothing"].isna().all()


def test_sums_that_the_database_computed_equal_those_of_pandas(dataset: Dataset) -> None:
    expected = frame()
    with dataset.table("all") as table:
        found = table.aggregates(list(table.columns))
    assert found is not None
    assert set(found) == {"x", "n", "ward", "nothing", "split"}  # dates are text here
    assert (found["nothing"].count, found["nothing"].missing) == (0, ROWS)
    x = found["x"]
    assert (x.count, x.missing, x.infinite) == (
        expected["x"].count(),
        expected["x"].isna().sum(),
        0,
    )
    assert (x.min, x.max) == (expected["x"].min(), expected["x"].max())
    assert x.sum == pytest.approx(expected["x"].sum(), rel=1e-12)
    assert found["ward"].categories == expected["ward"].value_counts().to_dict()
    assert found["ward"].missing == expected["ward"].isna().sum()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_column_names_the_split_of_each_row(driver: str, visits: Path, load: Load) -> None:
    dataset = load(entry(driver, more=", split_column: split")).named("visits")
    assert dataset.splits == ("test", "train")
    expected = frame().groupby("split")["n"].agg(["size", "sum"])
    for split in dataset.splits:
        with dataset.table(split) as table:
            assert "split" not in table.columns
            [chunk] = table.chunks(["n"])
            assert (len(chunk), chunk["n"].sum()) == tuple(expected.loc[split])
            aggregates = table.aggregates(["n", "ward"])
            assert aggregates is not None
            assert aggregates["n"].sum == expected.loc[split, "sum"]
            ward = aggregates["ward"]
            assert ward.count + ward.missing == len(chunk)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_query_may_have_comments_colons_and_a_semicolon(
    driver: str, visits: Path, load: Load
) -> None:
    query = "SELECT n AS 'number: 100%' FROM visits WHERE seen > '2024-01-01 00:00:00'; "
    dataset = load(entry(driver, f"{query.strip('; ')} -- : the end")).named("visits")
    with dataset.table("all") as table:
        assert whole(table)["number: 100%"].sum() == frame()["n"].sum()
        found = table.aggregates(["number: 100%"])
        assert found is not None
        assert found["number: 100%"].count == ROWS


@pytest.mark.parametrize("driver", DRIVERS)
def test_infinite_values_are_kept_and_counted_apart(driver: str, visits: Path, load: Load) -> None:
    query = "SELECT 9e999 AS x UNION ALL SELECT -9e999 UNION ALL SELECT 2.5 UNION ALL SELECT NULL"
    with load(entry(driver, query)).named("visits").table("all") as table:
        [chunk] = table.chunks(["x"])
        assert chunk["x"].tolist()[:3] == [math.inf, -math.inf, 2.5]
        found = table.aggregates(["x"])
    assert found is not None
    x = found["x"]
    assert (x.count, x.infinite, x.missing, x.min, x.max, x.sum) == (1, 2, 1, 2.5, 2.5, 2.5)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_table_without_rows_is_no_error(driver: str, visits: Path, load: Load) -> None:
    dataset = load(entry(driver, "SELECT x, ward FROM visits WHERE 0")).named("visits")
    with dataset.table("all") as table:
        assert set(table.columns) == {"x", "ward"}
        assert sum(map(len, table.chunks(["x", "ward"]))) == 0
        found = table.aggregates(["x", "ward"])
    assert found is not None
    assert {(each.count, each.missing, each.sum) for each in found.values()} == {(0, 0, None)}


@pytest.mark.parametrize("driver", DRIVERS)
def test_more_categories_than_a_database_counts_are_told_as_too_many(
    driver: str, visits: Path, load: Load
) -> None:
    query = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 1200) "
        "SELECT 'n' || i AS name FROM c"
    )
    with load(entry(driver, query)).named("visits").table("all") as table:
        found = table.aggregates(["name"])
    assert found is not None
    name = found["name"]
    assert (name.has_too_many_categories, name.categories, name.count) == (True, {}, 1200)


def test_a_column_whose_values_come_late_is_what_they_are(
    visits: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOOKED_AT", 100)
    query = (
        "SELECT CASE WHEN rowid > 300 THEN x END AS late, "
        "CASE WHEN rowid > 300 THEN 'north' END AS text, "
        "CASE WHEN rowid > 300 THEN n + 0.5 ELSE n END AS turns FROM visits"
    )
    with load(entry("sqlite", query)).named("visits").table("all") as table:
        assert list(table.columns.values()) == ["numeric", "categorical", "numeric"]
        found = whole(table, rows=50)
    assert found["late"].count() == frame()["x"][300:].count()
    assert found["text"].count() == 200
    assert found["turns"].sum() == frame()["n"].sum() + 100


@pytest.mark.parametrize("driver", DRIVERS)
def test_text_that_comes_late_where_numbers_were_is_told(
    driver: str, visits: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOOKED_AT", 100)
    query = "SELECT n, CASE WHEN rowid = 300 THEN 'secret' ELSE n END AS m FROM visits"
    told = "column 'm': .*row.* holds text where numbers were expected: mixed types"
    with load(entry(driver, query)).named("visits").table("all") as table:
        assert table.columns["m"] == "numeric"
        for read in (lambda: list(table.chunks(["n", "m"], 50)), lambda: table.aggregates(["m"])):
            with pytest.raises(MixedTypes, match=told) as failed:
                read()
            assert failed.value.column == "m"
            assert "secret" not in str(failed.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_numbers_that_are_kept_as_text_are_numbers(driver: str, visits: Path, load: Load) -> None:
    query = "SELECT CAST(n AS TEXT) AS n, CASE WHEN n > 3 THEN x ELSE '' END AS x FROM visits"
    with load(entry(driver, query)).named("visits").table("all") as table:
        assert table.columns == {"n": "numeric", "x": "numeric"}
        found = whole(table)
        aggregates = table.aggregates(["n", "x"])
    assert found["n"].sum() == frame()["n"].sum()
    assert found["x"].count() == frame()["x"][frame()["n"] > 3].count()
    assert aggregates == {}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT nope FROM visits", "the query failed: .*no such column: nope"),
        ("SELECT * FROM visit", "the query failed: .*no such table: visit"),
        ("SELEC", "the query failed: .*SELEC"),
        ("SELECT n, n FROM visits", "SQLite file vi sits#1.db has column 'n' more than once"),
        ("DROP TABLE visits", "the query failed: .*syntax error"),
    ],
)
def test_a_query_that_fails_is_told_with_what_the_database_says(
    driver: str, query: str, told: str, visits: Path, load: Load
) -> None:
    dataset = load(entry(driver, query)).named("visits")
    with pytest.raises(DatasetUnreadable, match=told), dataset.table("all"):
        pass


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_file_that_is_not_there_is_not_made(driver: str, tmp_path: Path, load: Load) -> None:
    dataset = load(entry(driver)).named("visits")
    with pytest.raises(DatasetUnreadable, match=r"SQLite file vi sits#1.db"), dataset.table("all"):
        pass
    assert not (tmp_path / "vi sits#1.db").exists()


def test_a_file_that_is_no_database_is_told(tmp_path: Path, load: Load) -> None:
    (tmp_path / "vi sits#1.db").write_text("age,sex\n" * 1000)
    dataset = load(entry("sqlite")).named("visits")
    with pytest.raises(DatasetUnreadable, match="file is not a database"), dataset.table("all"):
        pass


@pytest.mark.parametrize("driver", DRIVERS)
def test_all_passes_see_the_rows_of_one_moment(driver: str, visits: Path, load: Load) -> None:
    with closing(sqlite3.connect(visits)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        with load(entry(driver)).named("visits").table("all") as table:
            before = whole(table)["n"].sum()
            writer.execute("UPDATE visits SET n = n + 1")
            writer.commit()
            assert whole(table)["n"].sum() == before
            found = table.aggregates(["n"])
            assert found is not None
            assert found["n"].sum == before
        with load(entry(driver)).named("visits").table("all") as table:
            assert whole(table)["n"].sum() == before + ROWS


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.commit()
"""


def test_a_file_that_another_program_locks_is_waited_for(
    visits: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load(entry("sqlite")).named("visits")
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(visits)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == "locked\n"
        monkeypatch.setattr(adbc, "BUSY_S", 0.01)
        with pytest.raises(DatasetUnreadable, match="is locked"), dataset.table("all"):
            pass
        monkeypatch.setattr(adbc, "BUSY_S", 30.0)
        release = threading.Timer(0.1, lambda: writer.communicate("\n"))
        release.start()
        with dataset.table("all") as table:
            assert len(whole(table)) == ROWS
        release.join()


def test_a_column_that_the_file_names_must_be_there(visits: Path, load: Load) -> None:
    for more, near in (
        (", columns: [N]", ""),  # no other may be used
        (", forbidden: [nn]", ""),
        (", kinds: {war: numeric}", "Did you mean 'ward'. "),
    ):
        dataset = load(entry("sqlite", more=more)).named("visits")
        told = rf"^datasets.yaml:2: .*does not have. {near}Correct the name"
        with (
            pytest.raises(DatasetNotFound, match=told),
            dataset.table("all"),
        ):
            pass


@pytest.fixture
def without_adbc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_sqlite", None)


@pytest.mark.usefixtures("without_adbc")
def test_without_adbc_the_driver_that_python_brings_reads(visits: Path, load: Load) -> None:
    with load(entry("sqlite")).named("visits").table("all") as table:
        assert whole(table)["n"].sum() == frame()["n"].sum()
