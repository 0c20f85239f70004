"""The result in a terminal: what is said, and that no number is ever cut."""

import io

import pytest
from rich.console import Console, RenderableType

from prefect_federated.errors import StatisticsNotFound
from prefect_federated.statistics.drift import compare
from prefect_federated.statistics.schema import Histogram, Summary
from prefect_federated.statistics.terminal import bars, one_column, overview
from tests.statistics.made import EVIL, evil, heart, many_features, troubled_heart


def shown(what: RenderableType, width: int = 100, encoding: str = "utf-8") -> str:
    """Returns what a terminal of a width shows."""
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=buffer, width=width).print(what)
    buffer.seek(0)
    return buffer.read()


def test_the_overview_says_what_stands_out_what_is_withheld_and_who_is_absent() -> None:
    text = shown(overview(troubled_heart()), width=160)
    assert "- chol: switzerland has the value 0 in all its 92 values" in text
    assert "- site-4: withheld, 11 rows < minimum 20" in text
    assert "absent: it is not connected" in text
    assert "failed: its table 'heart' is empty" in text
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["chol", "numeric"]][:1]
    assert line.split()[2:9] == ["668", "3.2", "%", "200.8", "111.4", "0", "603"]


@pytest.mark.parametrize("width", [80, 60])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    assert "…" not in shown(overview(heart()), width)


def test_one_column_is_shown_site_by_site_with_quantiles_and_bounds() -> None:
    text = shown(one_column(troubled_heart(), "age"), width=140)
    for site in ("all sites", "cleveland", "hungary", "switzerland", "va-long-beach"):
        assert site in text
    assert "- site-4: withheld, 11 rows < minimum 20" in text
    assert "54 [53.76, 54.24]" in text
    assert "Male" in shown(one_column(troubled_heart(), "sex"))


def test_an_unknown_column_is_told_with_near_names() -> None:
    with pytest.raises(StatisticsNotFound, match=r"no column 'chal'.*'chol'"):
        one_column(heart(), "chal")


def test_drift_is_shown() -> None:
    before = heart()
    moved = before.splits["train"].features["age"].by_site["hungary"]
    features = dict(before.splits["train"].features)
    feature = features["age"]
    far = moved.model_copy(
        update={"histogram": Histogram(edges=[29, 31, 79], counts=[0, moved.count])}
    )
    features["age"] = feature.model_copy(update={"by_site": {"hungary": far}})
    split = before.splits["train"].model_copy(update={"features": features})
    earlier = before.model_copy(update={"splits": {"train": split}})
    now = before.model_copy(update={"compared": compare(before, earlier)})
    text = shown(overview(now), width=160)
    assert "Since the run of 2026-03-01 02:30" in text
    assert "in this run only" in text


def test_square_brackets_and_control_characters_of_names_do_nothing() -> None:
    text = shown(overview(evil()), width=300)
    assert EVIL[:20] in text
    result = heart().model_copy(update={"notes": ["[red]x[/red] \x1b[31mred"]})
    text = shown(overview(result))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_histograms_of_characters_show_the_least_value_and_fit() -> None:
    one = Summary(histogram=Histogram(edges=list(range(61)), counts=[0, 1, *[100] * 58]))
    assert bars(one)[0] == "▁"
    assert len(bars(one)) == 30
    assert len(bars(one, most=7)) <= 7
    assert bars(Summary()) == ""
    assert bars(Summary(categories={"a": 1, "b": 8, "c": None})) == "█▁ "


def test_a_terminal_without_unicode_gets_other_characters() -> None:
    text = shown(one_column(many_features(1), "feature-0"), 120, "ascii")
    assert "@" in text
