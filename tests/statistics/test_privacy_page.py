"""The page on privacy says what is so: rules, defaults, and examples that are read as written."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from prefect_federated.datasets import load_datasets
from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.statistics.ledger import FOLDER

PAGE = (Path(__file__).parents[2] / "docs" / "privacy-of-statistics.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_file_that_a_site_can_have(example: str, tmp_path: Path) -> None:
    (tmp_path / "heart.csv").write_text("age,cholesterol,name,insurance_number\n50,200,a,b\n")
    (tmp_path / "datasets.yaml").write_text(example)
    policy = load_datasets(tmp_path).named("heart").policy
    written = yaml.safe_load(example)["privacy"]
    for rule, value in written.items():
        said = policy.model_dump(mode="json")[rule]
        assert said == value or (isinstance(value, dict) and value.items() <= said.items())


def test_the_stricter_section_of_the_first_example_wins(tmp_path: Path) -> None:
    (tmp_path / "heart.csv").write_text("age,name,insurance_number\n50,a,b\n")
    (tmp_path / "datasets.yaml").write_text(EXAMPLES[0])
    policy = load_datasets(tmp_path).named("heart").policy
    assert (policy.minimum_rows, policy.small_cell) == (50, 10)
    assert policy.allowed(["age", "Name"]) == ("age",)


@pytest.mark.parametrize("model", [PrivacyPolicy, Noise])
def test_each_rule_is_on_the_page_with_its_default(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        default = field.default
        shown = ROWS[name].strip()
        if default in (None, {}, frozenset()):
            assert shown in ("none", "all", "never"), name
        elif isinstance(default, str | bool):
            assert shown == str(default).lower(), name
        else:
            assert float(shown) == default, name


def test_the_ledgers_folder_is_called_as_the_page_says() -> None:
    assert f"`{FOLDER}`" in PAGE
