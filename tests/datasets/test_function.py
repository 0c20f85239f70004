"""A site's own function as a source."""

import importlib
import logging
from pathlib import Path

import pytest

from prefect_federated.errors import DatasetUnreadable
from tests.datasets.conftest import Load, whole

MODULE = """\
import datetime
import pandas as pd
import pyarrow as pa

ROWS = 7

def patients():
    return pd.DataFrame({
        "age": [40.5, float("inf"), None] * ROWS,
        "code": [1, 2, 3] * ROWS,
        "smoker": [True, False, True] * ROWS,
        "asked": [True, None, False] * ROWS,
        "sex": ["f", "m", None] * ROWS,
        "ward": pd.Categorical(["north", "south", None] * ROWS),
        "seen": pd.to_datetime(["2024-01-01", None, "2024-01-03"] * ROWS, utc=True),
        "day": [datetime.date(2024, 1, 1), None, None] * ROWS,
        "nothing": [None, None, None] * ROWS,
        "mixed": [1, "secret", None] * ROWS,
        7: [1, 2, 3] * ROWS,
        "split": ["train", "train", "test"] * ROWS,
    })

def table():
    return pa.table({"x": [1, None, 3], "name": ["a", "b", None]})

def nothing():
    return pd.DataFrame({"x": pd.Series([], dtype="float64")})

def fails():
    raise ValueError("the secret value 'secret'")

def text():
    return "secret"

def with_parameter(folder):
    return None

def twice():
    return pd.DataFrame([[1, 2]], columns=["x", "x"])

broken = 5
"""
RAISING = "raise ValueError('the secret value')"


@pytest.fixture
def frames(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    (tmp_path / "site_frames.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raising.py").write_text(RAISING)
    importlib.invalidate_caches()
    return load


def test_a_frame_is_read_like_a_file(frames: Load) -> None:
    dataset = frames("p: {function: 'site_frames:patients', kinds: {code: categorical}}").named("p")
    with dataset.table("all") as table:
        assert table.columns == {
            "age": "numeric", "code": "categorical", "smoker": "boolean", "asked": "boolean",
            "sex": "categorical", "ward": "categorical", "seen": "datetime", "day": "datetime",
            "nothing": "empty", "7": "numeric", "split": "categorical",
        }  # fmt: skip
        assert "column 'mixed' holds Python objects of mixed types" in table.unusable["mixed"]
        found = whole(table, rows=4)
        assert table.aggregates(["age"]) is None
    assert len(found) == 21
    assert found["age"][:2].tolist() == [40.5, float("inf")]
    assert found["code"].tolist() == ["1", "2", "3"] * 7
    assert found["asked"].fillna(-1).tolist() == [1, -1, 0] * 7
    assert found["ward"].fillna("?").tolist() == ["north", "south", "?"] * 7
    assert found["seen"].fillna(-1).tolist() == [1704067200, -1, 1704240000] * 7
    assert found["7"].sum() == 42


def test_a_column_of_a_frame_names_the_split_of_each_row(frames: Load) -> None:
    dataset = frames("p: {function: 'site_frames:patients', split_column: split}").named("p")
    assert dataset.splits == ("test", "train")
    with dataset.table("test") as table:
        assert whole(table)["code"].tolist() == [3.0] * 7


def test_a_pyarrow_table_is_a_frame_too(frames: Load) -> None:
    with frames("t: {function: 'site_frames:table'}").named("t").table("all") as table:
        assert table.columns == {"x": "numeric", "name": "categorical"}
        assert whole(table)["x"].sum() == 4


def test_a_frame_without_rows_is_no_error(frames: Load) -> None:
    with frames("n: {function: 'site_frames:nothing'}").named("n").table("all") as table:
        assert list(table.columns) == ["x"]
        assert sum(map(len, table.chunks(["x"]))) == 0


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("site_frames:fails", r"raised ValueError in fails, line \d+ of its file"),
        ("site_frames:text", "returned a str. Return a pandas DataFrame or a pyarrow Table"),
        ("site_frames:with_parameter", "is not a function without parameters"),
        ("site_frames:broken", "is not a function without parameters"),
        ("site_frames:none", "cannot be imported"),
        ("no_such_module:patients", r"cannot be imported \(ModuleNotFoundError"),
        ("raising:patients", r"cannot be imported \(ValueError\)"),
        ("site_frames:twice", "has column 'x' more than once"),
    ],
)
def test_a_function_that_gives_no_frame_is_told_without_values(
    function: str, told: str, frames: Load, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = frames(f"f: {{function: '{function}'}}").named("f")
    with (
        caplog.at_level(logging.ERROR, "prefect_federated.site"),
        pytest.raises(DatasetUnreadable, match=told) as failed,
        dataset.table("all"),
    ):
        pass
    assert "secret" not in str(failed.value)
    assert ("the secret value" in caplog.text) == function.endswith("fails")
