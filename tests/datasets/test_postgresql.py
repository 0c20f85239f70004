"""A real PostgreSQL: what its types are, how it is read, and what is told when it is away."""

import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from adbc_driver_postgresql.dbapi import connect

from benchmarks.reading import write_postgresql
from prefect_federated.datasets import adbc
from prefect_federated.errors import DatasetFileError, DatasetUnreadable
from tests.datasets.conftest import Load, whole
from tests.datasets.test_memory import GROWTH_MB, SMALL, read_in_a_process
from tests.datasets.test_memory import ROWS as ROWS_OF_LARGE

ROWS = 500


def frame() -> pd.DataFrame:
    random = np.random.default_rng(1)
    values = random.normal(1e9, 1, ROWS)
    values[::7] = np.nan
    return pd.DataFrame(
        {
            "x": values,
            'Age at "visit": 100%': random.integers(0, 100, ROWS),
            "ward": random.choice(["north", "south", ""], ROWS),
            "seen": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(range(ROWS), unit="h"),
            "smoker": random.random(ROWS) < 0.3,
            "split": ["test" if row % 4 == 0 else "train" for row in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def url(empty_database: str) -> str:
    """Returns the URL of a database with the tables `visits` and `types`."""
    with connect(empty_database) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("visits", pyarrow.Table.from_pandas(frame()))
        cursor.execute("CREATE TYPE mood AS ENUM ('happy', 'sad')")
        cursor.execute("CREATE SEQUENCE numbers")
        cursor.execute(
            "CREATE TABLE types (f float8, r real, n numeric(12, 2), i bigint, ok boolean, "
            "t text, m mood, at timestamp, with_zone timestamptz, day date, "
            "j jsonb, a int[], u uuid, price money, split text)"
        )
        cursor.execute(
            "INSERT INTO types VALUES "
            "(1.5, 0.5, 1.25, 3, true, ' a', 'happy', '2024-01-01 10:00', "
            "'2024-01-01 10:00+02', '2024-01-01', '{}', '{1}', gen_random_uuid(), 5, 'a'), "
            "('NaN', 'Infinity', 'NaN', 4, false, '', 'sad', 'infinity', '-infinity', "
            "'infinity', NULL, NULL, NULL, NULL, 'a'), "
            "(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, "
            "NULL, NULL)"
        )
        connection.commit()
    return empty_database


def entry(url: str, query: str = "SELECT * FROM visits", more: str = "") -> str:
    return f"visits:\n  url: {url}\n  query: |\n    {query}\n{more}"


def test_columns_and_rows_are_the_tables(url: str, load: Load) -> None:
    with load(entry(url)).named("visits").table("all") as table:
        assert list(table.columns.values()) == [
            "numeric", "numeric", "categorical", "datetime", "boolean", "categorical"
        ]  # fmt: skip
        found, expected = whole(table, rows=64), frame()
        assert max(map(len, table.chunks(["x"], 64))) <= 64
    age = 'Age at "visit": 100%'
    pd.testing.assert_series_equal(found["x"], expected["x"])
    assert (found[age] == expected[age]).all()
    assert found["ward"].fillna("").tolist() == expected["ward"].tolist()
    assert (pd.to_datetime(found["seen"], unit="s", utc=True) == expected["seen"]).all()
    assert (found["smoker"] == expected["smoker"]).all()


def test_sums_that_the_database_computed_equal_those_of_pandas(url: str, load: Load) -> None:
    expected = frame()
    with load(entry(url)).named("visits").table("all") as table:
        found = table.aggregates(list(table.columns))
        assert found is not None
        assert set(found) == set(table.columns)
    x, seen = found["x"], found["seen"]
    assert (x.count, x.missing, x.infinite) == (expected["x"].count(), ROWS - x.count, 0)
    assert (x.min, x.max) == (expected["x"].min(), expected["x"].max())
    assert x.sum == pytest.approx(expected["x"].sum(), rel=1e-12)
    assert (found["smoker"].min, found["smoker"].sum) == (0, expected["smoker"].sum())
    assert (seen.min, seen.max) == (
        expected["seen"].min().timestamp(), expected["seen"].max().timestamp()
    )  # fmt: skip
    wards = expected["ward"].value_counts().to_dict()
    assert (found["ward"].missing, found["ward"].count) == (wards[""], ROWS - wards[""])
    assert found["ward"].categories == {ward: wards[ward] for ward in ("north", "south")}


def test_a_column_names_the_split_of_each_row(url: str, load: Load) -> None:
    dataset = load(entry(url, more="  split_column: split")).named("visits")
    assert dataset.splits == ("test", "train")
    expected = frame().groupby("split")["smoker"].agg(["size", "sum"])
    for split in dataset.splits:
        with dataset.table(split) as table:
            [chunk] = table.chunks(["smoker"])
            assert (len(chunk), chunk["smoker"].sum()) == tuple(expected.loc[split])
            found = table.aggregates(["smoker", "ward"])
            assert found is not None
            assert found["smoker"].sum == expected.loc[split, "sum"]
            assert found["ward"].count + found["ward"].missing == len(chunk)


def test_each_type_is_read_as_what_it_is_and_what_is_none_is_told(url: str, load: Load) -> None:
    with (
        load(entry(url, "SELECT * FROM types -- all: 'of' them;"))
        .named("visits")
        .table("all") as table
    ):
        assert table.columns == {
            "f": "numeric", "r": "numeric", "n": "numeric", "i": "numeric", "ok": "boolean",
            "t": "categorical", "m": "categorical", "at": "datetime", "with_zone": "datetime",
            "day": "datetime", "split": "categorical",
        }  # fmt: skip
        assert set(table.unusable) == {"j", "a", "u", "price"}
        assert "column 'price' holds values of type money" in table.unusable["price"]
        found = whole(table)
        aggregates = table.aggregates(list(table.columns))
    at = pd.Timestamp("2024-01-01 10:00").timestamp()
    expected = {
        "f": [1.5, None, None], "r": [0.5, math.inf, None], "n": [1.25, None, None],
        "i": [3, 4, None], "ok": [1, 0, None], "t": [" a", None, None],
        "m": ["happy", "sad", None], "at": [at, math.inf, None],
        "with_zone": [at - 7200, -math.inf, None], "day": [at - 36000, math.inf, None],
        "split": ["a", "a", None],
    }  # fmt: skip
    assert found.astype(object).where(found.notna(), None).to_dict("list") == expected
    assert aggregates is not None
    for name in ("f", "n"):
        assert (aggregates[name].count, aggregates[name].missing) == (1, 2)
    assert (aggregates["with_zone"].infinite, aggregates["with_zone"].max) == (1, at - 7200)
    assert aggregates["m"].categories == {"happy": 1, "sad": 1}
    assert aggregates["t"].categories == {" a": 1}


def test_the_site_says_what_a_column_holds(url: str, load: Load) -> None:
    more = "  kinds: {i: categorical, day: categorical, ok: numeric, u: categorical}"
    query = "SELECT i, day, ok, u FROM types WHERE u IS NOT NULL"
    with load(entry(url, query, more)).named("visits").table("all") as table:
        found = whole(table)
        assert table.aggregates(["ok"]) is not None
    assert found[["i", "day", "ok"]].to_dict("list") == {
        "i": ["3"], "day": ["2024-01-01"], "ok": [1.0]
    }  # fmt: skip
    assert len(str(found["u"][0])) == 36


def test_rows_without_a_split_are_told(url: str, load: Load) -> None:
    dataset = load(entry(url, "SELECT * FROM types", "  split_column: split")).named("visits")
    with pytest.raises(DatasetUnreadable, match=r"column 'split' of .* is empty in some rows"):
        _ = dataset.splits


def test_a_column_with_many_values_names_no_splits(url: str, load: Load) -> None:
    dataset = load(entry(url, more="  split_column: seen")).named("visits")
    with pytest.raises(DatasetUnreadable, match="has more than 20 different values"):
        _ = dataset.splits


def test_all_passes_see_the_rows_of_one_moment(url: str, load: Load) -> None:
    dataset = load(entry(url, "SELECT f FROM types")).named("visits")
    with connect(url) as writer, writer.cursor() as cursor, dataset.table("all") as table:
        before = len(whole(table))
        cursor.execute("INSERT INTO types (f) VALUES (2)")
        writer.commit()
        assert len(whole(table)) == before
        found = table.aggregates(["f"])
        assert found is not None
        assert found["f"].count + found["f"].missing == before
        cursor.execute("DELETE FROM types WHERE f = 2")
        writer.commit()


def test_memory_does_not_grow_with_the_rows(url: str, load: Load, tmp_path: Path) -> None:
    write_postgresql(url, ROWS_OF_LARGE, table="large")
    small = f"SELECT * FROM large LIMIT {SMALL}"
    queries = {"small": small, "large": "SELECT * FROM large"}
    load("\n".join(f"{name}: {{url: '{url}', query: {q}}}" for name, q in queries.items()))
    found = read_in_a_process(tmp_path)
    assert found["rows"] == ROWS_OF_LARGE
    assert found["growth_mb"] < GROWTH_MB


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT nope FROM visits", 'column "nope" does not exist'),
        ("SELECT * FROM visit", 'relation "visit" does not exist'),
        ("SELEC", "syntax error"),
        ("SELECT nextval('numbers') AS n", "cannot execute nextval\\(\\) in a read-only"),
        ("DELETE FROM visits RETURNING *", "syntax error"),
        ("SELECT ward::int AS n FROM visits", "the site's log has what the database said"),
        ("SELECT x, x FROM visits", "has column 'x' more than once"),
    ],
)
def test_a_query_that_fails_is_told_without_a_rows_value(
    query: str, told: str, url: str, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load(entry(url, query)).named("visits")
    with (
        caplog.at_level(logging.WARNING, "prefect_federated.site"),
        pytest.raises(DatasetUnreadable, match=told) as failed,
        dataset.table("all") as table,
    ):
        list(table.chunks(list(table.columns)))
    assert not any(ward in str(failed.value) for ward in ("north", "south"))
    assert ("invalid input syntax" in caplog.text) == ("::int" in query)


def test_a_connection_that_is_ended_in_the_middle_is_told(url: str, load: Load) -> None:
    with load(entry(url)).named("visits").table("all") as table, connect(url) as other:
        with other.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND state = 'idle in transaction'"
            )
            cursor.fetchall()
        with pytest.raises(DatasetUnreadable, match=r"terminating connection|closed the conn"):
            list(table.chunks(["x"]))


@contextmanager
def silent_server() -> Iterator[int]:
    """Accepts connections and says nothing, as a machine that hangs; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_database_that_is_away_is_told_within_seconds(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIC_DB_PASSWORD", "hunter2")
    monkeypatch.setitem(adbc.LIBPQ, "connect_timeout", "2")  # the least that libpq takes
    with silent_server() as port:
        address = f"postgresql://reader:${{CLINIC_DB_PASSWORD}}@127.0.0.1:{port}/clinic"
        dataset = load(entry(address)).named("visits")
        told = f"PostgreSQL database clinic at 127.0.0.1:{port} cannot be opened: .*timeout expired"
        with pytest.raises(DatasetUnreadable, match=told) as failed, dataset.table("all"):
            pass
    told = "Connection refused"
    with pytest.raises(DatasetUnreadable, match=told) as refused, dataset.table("all"):
        pass
    assert "hunter2" not in f"{failed.value} {refused.value}"


def test_a_database_that_does_not_exist_is_told(url: str, load: Load) -> None:
    dataset = load(entry(url.replace("/postgres?", "/clinic?"))).named("visits")
    told = 'database "clinic" does not exist'
    with pytest.raises(DatasetUnreadable, match=told), dataset.table("all"):
        pass


def test_a_password_comes_from_a_variable_or_a_file(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIC_DB_PASSWORD", "h@nter/2")
    (tmp_path / "password").write_text("h@nter/2\n")
    for kept in ("env: CLINIC_DB_PASSWORD", "file: password"):
        more = f"  password_from: {{{kept}}}"
        source = load(entry("postgresql://me@db/clinic", more=more)).named("visits").sources["all"]
        assert source.url.resolve().password == "h@nter/2"  # type: ignore[attr-defined]
        assert "h@nter/2" not in repr(source)


@pytest.mark.parametrize(
    ("address", "more", "told"),
    [
        ("postgresql://${NO_SUCH}@db/x", "", "variable NO_SUCH is not set"),
        ("postgresql://db/x", "  password_from: {env: NO_SUCH}", "variable NO_SUCH is not set"),
        ("postgresql://db/x", "  password_from: {file: none}", "file none cannot be read"),
        ("hunter2", "", "`url` is no database URL"),
        ("postgresql://me:hunter2@db:port/x", "", "`url` is no database URL"),
        ("postgresql+asyncpg://me:hunter2@db/x", "", r"asynchronous driver. Leave `\+asyncpg` out"),
        ("postgresql+psycopg2://me:hunter2@db/x", "", "driver psycopg2 is not installed"),
        ("postgres://me:hunter2@db/x", "", "no dialect 'postgres'"),
    ],
)
def test_a_url_that_is_wrong_is_told_without_its_password(
    address: str, more: str, told: str, load: Load, tmp_path: Path
) -> None:
    dataset = load(entry(address, more=more)).named("visits")
    with pytest.raises(DatasetFileError, match=told) as failed, dataset.table("all"):
        pass
    assert str(failed.value).startswith("datasets.yaml:2: ")
    assert "hunter2" not in str(failed.value)
