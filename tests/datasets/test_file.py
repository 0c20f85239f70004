"""What a `datasets.yaml` may say, and what a wrong one is told."""

import re
import sys
from pathlib import Path

import pytest

from prefect_federated.datasets import load_datasets
from prefect_federated.errors import DatasetFileError, DatasetNotFound

GOOD = """\
privacy:
  minimum_rows: 30
datasets:
  heart:
    csv: heart.csv
    split_column: split
    columns: [age, chol]
    kinds: {sex: categorical}
    privacy:
      small_cell: 8
  visits:
    splits:
      train:
        url: postgresql://reader:hunter2@db/clinic
        query: SELECT * FROM visits
      test:
        parquet: test.parquet
"""

WRONG = [
    # what to replace, by what, the line, what the error says
    ("datasets:", "datset:", 3, "unknown key `datset`. Did you mean `datasets`?"),
    ("    csv: heart.csv\n", "", 4, "there is no source here. Write one of `csv: FILE`"),
    ("    csv: heart.csv\n", "    csv: a.csv\n    parquet: b\n", 4, "csv and parquet are two"),
    ("csv: heart.csv", "csv: 5", 5, "`csv` is the int 5: should be a valid string."),
    ("csv: heart.csv", "cvs: heart.csv", 5, "unknown key `cvs`. Did you mean `csv`?"),
    ("columns: [age, chol]", "columns: []", 7, "`columns` is a list: "),
    ("{sex: categorical}", "{sex: categories}", 8, "'numeric', 'boolean', 'categorical' or"),
    ("      small_cell: 8", "      smal_cell: 8", 10, "Did you mean `small_cell`?"),
    ("      small_cell: 8", "      small_cell: -8", 10, "greater than or equal to 0"),
    ("        query: SELECT * FROM visits\n", "", 13, "takes both `url: DATABASE` and `query"),
    ("      test:\n", "      train:\n", 16, "`train` stands twice; the first is in line 13"),
    ("parquet: test.parquet", "parqet: test.parquet", 17, "Did you mean `parquet`?"),
    ("  visits:\n", "  visits:\n    csv: a.csv\n", 11, "`splits` and `csv` both say where"),
    ("        url: postgresql://reader:hunter2@db/clinic", "        url: [hunter2]", 14, "a list"),
    ("    splits:\n", "    split_column: part\n    splits:\n", 11, "exclude each other"),
    ("reader:hunter2@db/clinic", "hunter2\n        password: x", 15, "unknown key `password`"),
    ("heart:\n", "heart: [\n", 6, "not valid YAML"),
]


def write(folder: Path, text: str) -> Path:
    (folder / "datasets.yaml").write_text(text)
    return folder


def test_a_file_names_datasets_their_splits_and_their_policy(tmp_path: Path) -> None:
    datasets = load_datasets(write(tmp_path, GOOD))
    assert datasets.names == ("heart", "visits")
    heart, visits = datasets.named("heart"), datasets.named("visits")
    assert (heart.split_column, heart.allowed) == ("split", ("age", "chol"))
    assert heart.kinds == {"sex": "categorical"}
    assert (heart.policy.minimum_rows, heart.policy.small_cell) == (30, 8)
    assert visits.splits == ("train", "test")
    assert visits.policy.small_cell < 8


@pytest.mark.parametrize(("what", "by", "line", "told"), WRONG)
def test_a_wrong_file_is_told_by_line_and_shows_no_secret(
    what: str, by: str, line: int, told: str, tmp_path: Path
) -> None:
    assert GOOD.count(what) == 1
    folder = write(tmp_path, GOOD.replace(what, by))
    with pytest.raises(DatasetFileError) as failed:
        load_datasets(folder)
    [message] = str(failed.value).splitlines()
    assert message.startswith(f"datasets.yaml:{line}: ")
    assert told in message
    assert "hunter2" not in message


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = GOOD.replace("minimum_rows: 30", "minimum_rows: none").replace("csv:", "cvs:")
    with pytest.raises(DatasetFileError) as failed:
        load_datasets(write(tmp_path, wrong))
    lines = [re.match(r".*datasets.yaml:(\d+): ", m) for m in str(failed.value).splitlines()]
    assert [found and found[1] for found in lines] == ["2", "5"]


def test_privacy_sections_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    wrong = GOOD.replace("minimum_rows: 30", "bounds: {age: [0, 10]}")
    wrong = wrong.replace("small_cell: 8", "bounds: {age: [20, 30]}")
    with pytest.raises(DatasetFileError, match=r"datasets.yaml:9: .*do not overlap"):
        load_datasets(write(tmp_path, wrong))


def test_a_site_without_the_file_is_told_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetFileError, match=r"datasets.yaml:1: .*docs/datasets.md shows one"):
        load_datasets(tmp_path)


def test_an_unknown_dataset_is_told_near_names_and_those_there_are(tmp_path: Path) -> None:
    datasets = load_datasets(write(tmp_path, GOOD))
    with pytest.raises(
        DatasetNotFound, match=r"no dataset 'Hearts'.*Did you mean 'heart'\? There is heart, visits"
    ):
        datasets.named("Hearts")


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "prefect_federated.datasets.csv_file", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DatasetFileError, match=r"yaml:4: .*pyarrow, .* Install prefect-federated\[statistics\]"
    ):
        load_datasets(write(tmp_path, GOOD))


def test_neither_a_dataset_nor_its_source_shows_its_password(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load_datasets(write(tmp_path, GOOD)))
