"""Splits of a dataset, and which of its columns may be used at all."""

from pathlib import Path

import pytest

from prefect_federated.datasets.table import near
from prefect_federated.errors import DatasetNotFound, DatasetUnreadable
from tests.datasets.conftest import Load, whole

ROWS = "Name,age,sex,ward\nAda,36,f,north\nAlan,41,m,south\nGrace,85,f,north\n"


@pytest.fixture
def people(load: Load, tmp_path: Path) -> Load:
    (tmp_path / "people.csv").write_text(ROWS)
    (tmp_path / "more.csv").write_text("age,weight\n7,20\n")
    return load


@pytest.mark.parametrize(
    ("more", "usable"),
    [
        ("", {"Name", "age", "sex", "ward"}),
        (", columns: [age, sex]", {"age", "sex"}),
        (", forbidden: [NAME]", {"age", "sex", "ward"}),
        (", columns: [age, Name], forbidden: [name]", {"age"}),
        (", privacy: {forbidden_columns: [name, age]}", {"sex", "ward"}),
        (", privacy: {allowed_columns: [age, ward]}", {"age", "ward"}),
        (", columns: [age, sex], privacy: {allowed_columns: [age, ward]}", {"age"}),
        (", split_column: ward, forbidden: [name]", {"age", "sex"}),
    ],
)
def test_only_columns_that_the_site_lets_be_used_are_there(
    more: str, usable: set[str], people: Load
) -> None:
    dataset = people(f"people: {{csv: people.csv{more}}}").named("people")
    with dataset.table(dataset.splits[0]) as table:
        assert set(table.columns) == usable
        assert set(whole(table).columns) == usable
        with pytest.raises(DatasetNotFound, match="'Weight' that may be used"):
            list(table.chunks(["Weight"]))
        for name in {"Name", "age", "sex", "ward"} - usable:
            with pytest.raises(DatasetNotFound, match=f"no column '{name}' that may be used"):
                list(table.chunks([name]))
            with pytest.raises(DatasetNotFound, match=f"no column '{name}' that may be used"):
                table.aggregates([name])


def test_nothing_at_all_may_be_used(people: Load) -> None:
    entry = "people: {csv: people.csv, columns: [Name], forbidden: [name]}"
    with people(entry).named("people").table("all") as table:
        assert table.columns == {}
        assert list(table.chunks([])) == []


def test_each_split_may_have_a_source_and_columns_of_its_own(people: Load) -> None:
    entry = "people: {splits: {train: {csv: people.csv}, test: {csv: more.csv}}}"
    dataset = people(entry).named("people")
    assert dataset.splits == ("train", "test")
    with dataset.table("train") as train, dataset.table("test") as test:
        assert set(train.columns) == {"Name", "age", "sex", "ward"}
        assert test.columns == {"age": "numeric", "weight": "numeric"}
        assert (len(whole(train)), len(whole(test))) == (3, 1)


def test_the_rows_of_a_split_are_those_that_name_it(people: Load) -> None:
    dataset = people("people: {csv: people.csv, split_column: ward}").named("people")
    assert dataset.splits == ("north", "south")
    with dataset.table("north") as north, dataset.table("south") as south:
        assert whole(north)["age"].tolist() == [36, 85]
        assert whole(south, rows=1)["age"].tolist() == [41]


def test_an_unknown_split_is_told_near_names_and_those_there_are(people: Load) -> None:
    for entry, told in (
        ("people: {csv: people.csv}", r"no split 'nort'. There is all\."),
        ("people: {csv: people.csv, split_column: ward}", r"Did you mean 'north'\? There is north"),
    ):
        with (
            pytest.raises(DatasetNotFound, match=f"dataset 'people' has .*{told}"),
            people(entry).named("people").table("nort"),
        ):
            pass


def test_a_column_that_names_no_splits_is_told(people: Load, tmp_path: Path) -> None:
    rows = "".join(f"{n}\n" for n in range(21))
    (tmp_path / "many.csv").write_text(f"split\n{rows}")
    (tmp_path / "gap.csv").write_text("split,age\ntrain,1\n,2\n")
    for name, told in (
        ("many", "has more than 20 different values. Name a column"),
        ("gap", "is empty in some rows, which belong to no split"),
    ):
        dataset = people(f"people: {{csv: {name}.csv, split_column: split}}").named("people")
        with pytest.raises(DatasetUnreadable, match=f"{name}.csv {told}"):
            _ = dataset.splits


def test_a_long_list_of_names_is_cut() -> None:
    told = near("c7", [f"c{number}" for number in range(100)])
    assert told.startswith("Did you mean 'c7'")
    assert told.endswith("c29 and 70 more.")
    assert near("x", []) == "There is none."


@pytest.mark.parametrize(
    "more",
    [
        "forbidden: [insurance_number], kinds: {insurance_numbr: numeric}",
        "privacy: {forbidden_columns: [insurance_number]}, kinds: {insurance_numbr: numeric}",
        "privacy: {allowed_columns: [age]}, split_column: insurance_numbr",
        "columns: [age, insurance_numbr]",
        "forbidden: [insurance_numbr]",
    ],
)
def test_a_wrong_name_in_the_file_tells_no_column_that_may_not_be_used_and_no_folder(
    more: str, load: Load, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("age,insurance_number\n36,a\n41,b\n")
    dataset = load(f"people: {{csv: people.csv, {more}}}").named("people")
    with pytest.raises(DatasetNotFound) as failed, dataset.table("all"):
        pass
    assert str(failed.value) == (
        "datasets.yaml:2: dataset 'people' names the column 'insurance_numbr', which CSV file "
        "people.csv does not have. Correct the name."
    )


def test_a_name_that_a_table_has_twice_is_told_if_it_may_be_used(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("age,age\n36,1\n41,2\n")
    for more, told in (("", "column 'age'"), (", privacy: {forbidden_columns: [age]}", "a column")):
        dataset = load(f"people: {{csv: people.csv{more}}}").named("people")
        with (
            pytest.raises(DatasetUnreadable, match=f"people.csv has {told} more than once"),
            dataset.table("all"),
        ):
            pass
