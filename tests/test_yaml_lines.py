"""YAML files of people's: plain, and with the line of all that is wrong."""

from pathlib import Path

import pytest

from prefect_federated.errors import ConfigurationError, DatasetFileError, FederationFileError
from prefect_federated.yaml_lines import read_yaml

GOOD = "name: heart\nsites:\n  - name: one\n    size: 3\n  - name: two\n"


def test_each_value_has_the_line_that_it_stands_on(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    document = read_yaml(tmp_path / "a.yaml", ConfigurationError, "")
    assert document.value == {
        "name": "heart", "sites": [{"name": "one", "size": 3}, {"name": "two"}]
    }  # fmt: skip
    assert document.line_of(("sites", 0, "size")) == 4
    assert document.line_of(("sites", 1, "name")) == 5
    assert document.line_of(("sites", 1, "size")) == 5  # of what is around it
    assert document.value_at(("sites", 0, "size")) == 3
    assert document.value_at(("sites", 2)) is None


@pytest.mark.parametrize("wrong", [FederationFileError, DatasetFileError])
@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: [\n", 2, "not valid YAML"),
        ("a: 1\na: 2\n", 2, "`a` stands twice; the first is in line 1"),
        ("a: &x 1\nb: *x\n", 2, "the alias *x is not read here"),
        ("a: 1\noff: 2\n", 2, "off cannot be a key"),
        ("a: 2026-13-01\n", 1, "is not a value"),
        ("a: \x07\n", 1, "a character that YAML does not allow"),
    ],
)
def test_what_is_wrong_is_raised_as_asked_with_its_line(
    text: str, line: int, told: str, wrong: type[ConfigurationError], tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(wrong) as failed:
        read_yaml(file, wrong, "Write one.")
    assert str(failed.value).startswith(f"{file}:{line}: ")
    assert told in str(failed.value)


def test_a_file_that_is_not_there_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetFileError, match=r"a.yaml:1: .*No such file.* Write one\."):
        read_yaml(tmp_path / "a.yaml", DatasetFileError, "Write one.")
