"""The frame: its columns are those that are documented, its numbers those of the result."""

import math
import re
from pathlib import Path

from prefect_federated.statistics.schema import OVERALL, Statistics
from prefect_federated.statistics.tables import COLUMNS, as_frame
from tests.statistics.made import heart, heart_frames, troubled_heart

PAGE = Path(__file__).parents[2] / "docs" / "statistics-report.md"


def test_there_is_a_row_for_each_split_column_and_site() -> None:
    result = heart()
    frame = as_frame(result)
    assert len(frame) == 2 * 14 * 5
    assert not frame.duplicated(["split", "feature", "site"]).any()
    row = frame.query("split == 'train' and feature == 'age' and site == 'hungary'").iloc[0]
    values = heart_frames()["train"]["hungary"]["age"]
    assert row["mean"] == values.mean()
    assert row["q0.5"] == values.median()
    assert row["q0.5_lower"] <= row["q0.5"] <= row["q0.5_upper"]
    assert frame["group"].isna().all()


def test_groups_have_rows_of_their_own() -> None:
    frame = as_frame(troubled_heart())
    assert set(frame["group"].dropna()) == {"Male", "Female"}
    whole = frame[frame["group"].isna()]
    assert len(whole) == 2 * 14 * 6


def test_what_is_withheld_is_missing_and_says_why() -> None:
    frame = as_frame(troubled_heart()).set_index(["split", "group", "feature", "site"])
    row = frame.xs("site-4", level="site").iloc[0]
    assert math.isnan(row["mean"])
    assert row["withheld"] == "everything: 11 rows < minimum 20"


def test_columns_are_those_that_are_documented() -> None:
    frame = as_frame(heart())
    assert [c for c in map(str, frame) if not re.match(r"q0\.", c)] == list(COLUMNS)
    page = PAGE.read_text()
    for name, meaning in COLUMNS.items():
        assert f"| `{name}` | {meaning} |" in page


def test_an_empty_result_is_an_empty_frame() -> None:
    frame = as_frame(heart().model_copy(update={"splits": {}}))
    assert len(frame) == 0
    assert list(frame) == list(COLUMNS)


def test_the_schema_of_the_json_is_documented_field_by_field() -> None:
    schema = Statistics.model_json_schema()
    page = PAGE.read_text()
    for name, part in {"Statistics": schema, **schema["$defs"]}.items():
        section = page.partition(f"### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert documented == list(part["properties"]), name


def test_json_comes_back_as_it_was() -> None:
    result = troubled_heart()
    assert Statistics.model_validate_json(result.model_dump_json()) == result
    assert OVERALL == "all sites"
