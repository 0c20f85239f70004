"""The artifact's markdown: what must be in it, what must not, and how large it gets."""

import base64
import io
import re
import time

from matplotlib.image import imread

from prefect_federated.statistics.drift import compare
from prefect_federated.statistics.summary import LINES, summary_markdown
from tests.statistics.made import EVIL, evil, heart, many_features, troubled_heart


def pictures(markdown: str) -> list[bytes]:
    found = re.findall(r"!\[[^\]]+\]\(data:image/png;base64,([^)]+)\)", markdown)
    return [base64.b64decode(each) for each in found]


def test_it_holds_notes_withheld_lines_states_table_and_pictures() -> None:
    text = summary_markdown(troubled_heart(), "[the report](file:///r.html)")
    assert "- chol: switzerland has the value 0 in all its 92 values" in text
    assert "- ca: two thirds of all values are missing" in text
    assert "- site-4: withheld, 11 rows < minimum 20" in text
    assert "basel: absent, it is not connected" in text
    assert "zurich: failed, its table 'heart' is empty" in text
    assert "| train | chol | switzerland | 92 | 0 % | 0 | 0 | 0 | 0 |" in text
    assert "| train | age | site-4 | withheld, 11 rows < minimum 20 |  |" in text
    assert "[the report](file:///r.html)" in text
    for picture in pictures(text):
        height, width = imread(io.BytesIO(picture), format="png").shape[:2]
        assert height > 200
        assert 200 < width < 1200
    assert len(pictures(text)) == 2


def test_every_row_of_its_tables_has_as_many_cells_as_the_header() -> None:
    rows = [line for line in summary_markdown(evil()).splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}


def test_hostile_names_are_text_in_markdown() -> None:
    text = summary_markdown(evil())
    assert EVIL[:10] not in text
    assert "&lt;script>" in text
    assert "<img" not in text


def test_its_size_is_bounded() -> None:
    result = many_features(300, rows=5, sites=3, splits=("train",))
    lines = [f"site-{number}: withheld, too few rows" for number in range(5000)]
    text = summary_markdown(result.model_copy(update={"withheld": lines, "notes": lines}))
    assert len(text) < 500_000
    assert f"- {5000 - LINES} more in the report" in text
    assert "more rows are in the report" in text


def test_drift_is_in_it() -> None:
    result = heart()
    earlier = result.model_copy(update={"splits": {"train": result.splits["test"]}})
    now = result.model_copy(update={"compared": compare(result, earlier, 0.0, 0.0)})
    text = summary_markdown(now)
    assert "## Since the run of 2026-03-01 02:30" in text
    assert "split test: in this run only" in text


def test_it_is_made_in_a_second() -> None:
    result = many_features(30)
    summary_markdown(result)  # matplotlib is imported, fonts are found
    started = time.process_time()
    summary_markdown(result)
    assert time.process_time() - started < 1.5


def test_a_result_of_nothing_has_a_summary() -> None:
    nothing = heart().model_copy(update={"splits": {}, "sites": {}})
    assert summary_markdown(nothing).startswith("# Statistics of heart")
