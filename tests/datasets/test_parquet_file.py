"""Parquet files: a column holds what its type says."""

import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from prefect_federated.errors import DatasetUnreadable, MixedTypes
from tests.datasets.conftest import Load, whole

NOON = datetime.datetime(2024, 1, 1, 12)


@pytest.fixture
def typed(load: Load, tmp_path: Path) -> Load:
    table = pyarrow.table(
        {
            "x": pyarrow.array([1.5, float("inf"), None]),
            "n": pyarrow.array([1, 2, None], pyarrow.int32()),
            "price": pyarrow.array([Decimal("1.25"), None, Decimal("2.50")]),
            "ok": pyarrow.array([True, None, False]),
            "at": pyarrow.array([NOON, None, NOON], pyarrow.timestamp("ms", "Europe/Zurich")),
            "day": pyarrow.array([NOON.date(), None, None]),
            "ward": pyarrow.array(["north", "", None]),
            "coded": pyarrow.array(["a", None, "a"]).dictionary_encode(),
            "nothing": pyarrow.array([None, None, None], pyarrow.float64()),
            "list": pyarrow.array([[1], [2], None]),
            "split": ["train", "test", "train"],
        }
    )
    parquet.write_table(table, tmp_path / "typed.parquet", row_group_size=2)
    return load


def test_columns_are_what_their_types_say(typed: Load) -> None:
    with typed("typed: {parquet: typed.parquet}").named("typed").table("all") as table:
        assert table.columns == {
            "x": "numeric", "n": "numeric", "price": "numeric", "ok": "boolean", "at": "datetime",
            "day": "datetime", "ward": "categorical", "coded": "categorical", "nothing": "empty",
            "split": "categorical",
        }  # fmt: skip
        assert "column 'list' holds values of type list" in table.unusable["list"]
        found = whole(table)
    noon = NOON.replace(tzinfo=datetime.UTC).timestamp()
    expected = {
        "x": [1.5, np.inf, None], "n": [1, 2, None], "price": [1.25, None, 2.5],
        "ok": [1, None, 0], "at": [noon, None, noon], "day": [noon - 43200, None, None],
        "ward": ["north", None, None], "coded": ["a", None, "a"], "nothing": [None] * 3,
        "split": ["train", "test", "train"],
    }  # fmt: skip
    assert found.astype(object).where(found.notna(), None).to_dict("list") == expected


def test_a_column_names_the_split_of_each_row(typed: Load) -> None:
    dataset = typed("typed: {parquet: typed.parquet, split_column: split}").named("typed")
    assert dataset.splits == ("test", "train")
    with dataset.table("train") as table:
        assert "split" not in table.columns
        assert whole(table)["price"].tolist() == [1.25, 2.5]


def test_numbers_and_truth_values_may_be_names(typed: Load) -> None:
    entry = "typed: {parquet: typed.parquet, kinds: {n: categorical, ok: categorical}}"
    with typed(entry).named("typed").table("all") as table:
        found = whole(table)
    assert found["n"].fillna("?").tolist() == ["1", "2", "?"]
    assert found["ok"].fillna("?").tolist() == ["true", "?", "false"]


def test_times_of_day_may_be_names_but_no_numbers_and_lists_neither(
    load: Load, tmp_path: Path
) -> None:
    columns = {"at": pyarrow.array([NOON.time(), None]), "list": pyarrow.array([[1], None])}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for kinds, told in (
        ("{at: categorical}", None),
        ("{at: numeric}", "column 'at' holds values of type time64"),
        ("{at: boolean}", "column 'at' holds values of type time64"),
        ("{at: datetime}", "column 'at' holds values of type time64"),
        ("{list: categorical}", "column 'list' holds values of type list"),
        ("{list: numeric}", "column 'list' holds values of type list"),
    ):
        entry = f"a: {{parquet: a.parquet, kinds: {kinds}}}"
        with load(entry).named("a").table("all") as table:
            if told is None:
                assert whole(table)["at"].fillna("?").tolist() == ["12:00:00.000000", "?"]
                continue
            with pytest.raises(MixedTypes, match=told):
                list(table.chunks(list(table.columns)))


def test_a_table_without_rows_is_no_error(load: Load, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"x": pyarrow.array([], "f8")}), tmp_path / "a.parquet")
    with load("a: {parquet: a.parquet}").named("a").table("all") as table:
        assert table.columns == {"x": "numeric"}
        assert sum(map(len, table.chunks(["x"]))) == 0


def test_a_file_that_is_missing_or_broken_is_told(load: Load, tmp_path: Path) -> None:
    dataset = load("a: {parquet: a.parquet}").named("a")
    with pytest.raises(DatasetUnreadable, match="no such file"), dataset.table("all"):
        pass
    (tmp_path / "a.parquet").write_text("age,sex\n1,m\n" * 10)
    with pytest.raises(DatasetUnreadable, match="is a Parquet file"), dataset.table("all"):
        pass
