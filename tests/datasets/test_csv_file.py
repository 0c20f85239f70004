"""CSV files: what their columns hold, how they are read, and what a bad one is told."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefect_federated.datasets import Table, csv_file
from prefect_federated.datasets import table as table_module
from prefect_federated.datasets.csv_file import CsvSource
from prefect_federated.errors import DatasetNotFound, DatasetUnreadable, MixedTypes
from tests.datasets.conftest import Load, whole

PATIENTS = """\
age,sex,smoker,seen,ward,note,code
61,f,TRUE,2024-01-31,north,,1
, m,false,2024-02-01 08:30,"south, old",NA,2.0
inf,f,,2024-02-01T10:30:00+02:00,,NaN,2
4.5e1,NA,FALSE,,north,nan,
"""


@pytest.fixture
def patients(load: Load, tmp_path: Path) -> Load:
    (tmp_path / "patients.csv").write_text(PATIENTS)
    return load


def test_kinds_are_what_all_values_of_a_column_are(patients: Load) -> None:
    with patients("patients: {csv: patients.csv}").named("patients").table("all") as table:
        assert table.columns == {
            "age": "numeric", "sex": "categorical", "smoker": "boolean", "seen": "datetime",
            "ward": "categorical", "note": "empty", "code": "numeric",
        }  # fmt: skip
        assert table.unusable == {}


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_values_come_as_numbers_and_categories_with_missing_ones(patients: Load, rows: int) -> None:
    with patients("patients: {csv: patients.csv}").named("patients").table("all") as table:
        found = whole(table, rows)
        assert max(map(len, table.chunks(["age"], rows))) <= rows
        assert table.aggregates(["age"]) is None
    assert found["age"].tolist()[0::2] == [61, np.inf]
    assert np.isnan(found["age"][1])
    assert found["smoker"].fillna(-1).tolist() == [1, 0, -1, 0]
    times = pd.to_datetime(found["seen"], unit="s")
    assert times[1] == times[2] == pd.Timestamp("2024-02-01 08:30")
    assert np.isnan(found["seen"][3])
    assert found["ward"].fillna("?").tolist() == ["north", "south, old", "?", "north"]
    assert found["sex"].fillna("?").tolist() == ["f", " m", "f", "?"]
    assert found["note"].isna().all()


def test_the_site_says_what_a_column_holds(patients: Load) -> None:
    entry = "patients: {csv: patients.csv, kinds: {code: categorical, smoker: categorical}}"
    with patients(entry).named("patients").table("all") as table:
        assert (table.columns["code"], table.columns["smoker"]) == ("categorical", "categorical")
        [chunk] = table.chunks(["code", "smoker"])
    assert chunk["code"].astype("str").fillna("?").tolist() == ["1", "2.0", "2", "?"]
    assert set(chunk["smoker"].cat.categories) == {"TRUE", "false", "FALSE"}


def test_chunks_have_only_the_columns_asked_for_in_that_order(patients: Load) -> None:
    with patients("patients: {csv: patients.csv}").named("patients").table("all") as table:
        [chunk] = table.chunks(["code", "age"])
        assert list(chunk.columns) == ["code", "age"]
        [rows] = table.chunks([])
        assert rows.shape == (4, 0)
        with pytest.raises(DatasetNotFound, match=r"no column 'Ages'.*Did you mean 'age'\?"):
            list(table.chunks(["Ages"]))


def test_a_chunk_of_many_columns_has_fewer_rows(
    patients: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "CELLS", 8)
    with patients("patients: {csv: patients.csv}").named("patients").table("all") as table:
        assert [len(chunk) for chunk in table.chunks(["age", "sex", "code"])] == [2, 2]
        assert [len(chunk) for chunk in table.chunks(list(table.columns))] == [1, 1, 1, 1]


def test_mixed_types_are_told_with_column_and_row_and_spare_the_other_columns(
    load: Load, tmp_path: Path
) -> None:
    rows = "".join(f"{n},x,2024-01-01\n" for n in range(50))
    (tmp_path / "mixed.csv").write_text(f"a,b,c\n{rows}secret,x,secret\n")
    with load("mixed: {csv: mixed.csv}").named("mixed").table("all") as table:
        assert table.columns == {"b": "categorical"}
        assert (
            "column 'a': row 51 holds text where numbers were expected: mixed types"
            in (table.unusable["a"])
        )
        assert "kinds: {a: categorical}" in table.unusable["a"]
        assert "row 51 holds text where dates were expected" in table.unusable["c"]
        assert "secret" not in str(table.unusable)
        with pytest.raises(DatasetNotFound, match="column 'a': row 51 holds text"):
            list(table.chunks(["a"]))


@pytest.mark.parametrize(
    ("kind", "value"), [("numeric", "secret"), ("boolean", "maybe"), ("datetime", "2024-02-30")]
)
def test_a_value_that_is_not_of_the_kind_the_site_says_is_told(
    kind: str, value: str, load: Load, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n,1\n{value},2\n")
    with load(f"a: {{csv: a.csv, kinds: {{a: {kind}}}}}").named("a").table("all") as table:
        with pytest.raises(MixedTypes, match="column 'a': row 2 holds") as failed:
            list(table.chunks(["a"]))
        assert failed.value.column == "a"
        assert value not in str(failed.value)


def test_a_column_that_turns_to_text_late_is_seen_in_a_later_block(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 1_000)
    lines = [f"{n},{'' if n < 900 else n}" for n in range(1000)]
    (tmp_path / "late.csv").write_text("\n".join(["a,b", *lines, "oops,5"]) + "\n")
    with load("late: {csv: late.csv}").named("late").table("all") as table:
        assert table.columns == {"b": "numeric"}
        assert "row 1,001" in table.unusable["a"]
        assert whole(table)["b"].sum() == sum(range(900, 1000)) + 5


def test_a_file_that_changed_is_looked_at_anew(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a\n1\n")
    dataset = load("a: {csv: a.csv}").named("a")

    def kinds() -> dict[str, str]:
        with dataset.table("all") as table:
            return dict(table.columns)

    assert kinds() == {"a": "numeric"}
    file.write_text("a\nx\ny\n")
    assert kinds() == {"a": "categorical"}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_and_packed_files_are_read(
    separator: str, load: Load, tmp_path: Path
) -> None:
    text = f"\ufeffa{separator}b\n1{separator}x, y\n"
    with gzip.open(tmp_path / "a.csv.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    with load("a: {csv: a.csv.gz}").named("a").table("all") as table:
        found = whole(table)
    assert found.to_dict("list") == {"a": [1.0], "b": ["x, y"]}


def test_a_table_without_rows_is_no_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    with load("a: {csv: a.csv}").named("a").table("all") as table:
        assert table.columns == {"a": "empty", "b": "empty"}
        assert sum(map(len, table.chunks(["a"]))) == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "does not begin with a line of column names"),
        (b"a,b\n1,2\n3\n", r"1 values in line 3, the line of names has 2"),
        (b"a,b\n1,M\xfcller\n", "is not UTF-8"),
        (b"\xff\xfe\n", "the line of names is not UTF-8"),
        (b'a,b\n1,"2\n' + b"3,4\n" * 600_000, "or a quote is not closed"),
        (b"a,b,a\n1,2,3\n", r"has column 'a' more than once"),
    ],
)
def test_a_bad_file_is_told_without_its_values(
    content: bytes, told: str, load: Load, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    dataset = load("a: {csv: a.csv}").named("a")
    with pytest.raises(DatasetUnreadable, match=told) as failed, dataset.table("all") as table:
        list(table.chunks(list(table.columns)))
    assert "ller" not in str(failed.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(DatasetUnreadable, match=r"CSV file none.csv .*No such file"),
        CsvSource(tmp_path / "none.csv").open(),
    ):
        pass


def test_the_title_of_a_table_names_dataset_and_split(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    datasets = load("a: {csv: a.csv}\nb: {splits: {train: {csv: a.csv}, test: {csv: a.csv}}}")
    titles: list[Table] = []
    for name, split in (("a", "all"), ("b", "train")):
        with datasets.named(name).table(split) as table:
            titles.append(table)
    assert [each.title for each in titles] == ["dataset 'a'", "dataset 'b', split 'train'"]
