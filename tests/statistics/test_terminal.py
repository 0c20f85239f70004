"""The result in a terminal: what is said, and that no number is ever cut."""

import io
import re

import numpy as np
import pytest
from rich.console import Console, RenderableType

from prefect_federated.errors import StatisticsNotFound
from prefect_federated.statistics.drift import compare
from prefect_federated.statistics.schema import (
    OVERALL,
    Histogram,
    Quantile,
    SiteState,
    Summary,
    Withheld,
)
from prefect_federated.statistics.terminal import one_column, overview
from prefect_federated.statistics.terminal_bars import bars
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
    assert "basel is absent: it is not connected" in text
    assert "zurich failed: its table 'heart' is empty" in text
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["chol", "numeric"]][:1]
    assert line.split()[2:9] == ["668", "3.2", "%", "200.8", "111.4", "0", "603"]


@pytest.mark.parametrize("width", [80, 60])
def test_no_number_is_cut_in_a_narrow_terminal(width: int) -> None:
    assert "…" not in shown(overview(heart()), width)


def test_names_and_kinds_stand_on_one_line_in_a_terminal_of_80_columns() -> None:
    text = shown(overview(troubled_heart()), 80)
    lines = [line.split() for line in text.splitlines()]
    assert ["trestbps", "643", "6.8", "%", "131.6", "18.98", "0", "200"] in [
        line[:8] for line in lines
    ]
    assert "Left out, as the terminal is narrow: kind" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    narrow = shown(overview(troubled_heart()), 60)
    assert "Left out, as the terminal is narrow: kind, min, max" in narrow
    assert ["trestbps", "643", "6.8", "%", "131.6", "18.98"] in [
        line.split()[:6] for line in narrow.splitlines()
    ]
    wide = shown(overview(troubled_heart()), 100)
    assert any(line.split()[:2] == ["restecg", "categorical"] for line in wide.splitlines())
    assert "va-long-beach " in shown(one_column(troubled_heart(), "chol"), 80)


@pytest.mark.parametrize("width", [120, 80, 60])
def test_quantiles_that_do_not_fit_go_below_each_other(width: int) -> None:
    result = heart()
    feature = result.splits["train"].features["chol"]
    some = [
        Quantile(q=q, value=1234567.25 + q, lower=1234567.25, upper=9876543.25)
        for q in (0.05, 0.25, 0.5, 0.75, 0.95)
    ]
    by_site = {"va-long-beach": Summary(count=150, quantiles=some)}
    feature = feature.model_copy(update={"by_site": by_site})
    split = result.splits["train"].model_copy(update={"features": {"chol": feature}})
    text = shown(one_column(result.model_copy(update={"splits": {"train": split}}), "chol"), width)
    for value in ("1,234,567.3", "1,234,567.5", "1,234,567.75", "1,234,568", "1,234,568.2"):
        assert f"{value} [1,234,567.25, 9,876,543.25]" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_the_whole_reason_of_a_site_that_did_not_answer_is_there() -> None:
    result = troubled_heart()
    reason = f"its dataset has a column {'of much ' * 20}text. Say in its datasets.yaml what it is."
    states = {**result.sites, "bern": SiteState(state="failed", reason=reason)}
    text = shown(overview(result.model_copy(update={"sites": states})), 80)
    start = text.index("Sites that did not answer")
    told = " ".join(text[start:].split())
    assert f"- bern failed: {reason.rstrip('.')}" in told
    assert "- basel is absent: it is not connected" in told
    assert "Sites that did not answer" not in shown(overview(heart()), 80)


def test_one_column_is_shown_site_by_site_with_quantiles_and_bounds() -> None:
    text = shown(one_column(troubled_heart(), "age"), width=140)
    for site in ("all sites", "cleveland", "hungary", "switzerland", "va-long-beach"):
        assert site in text
    assert "- site-4: withheld, 11 rows < minimum 20" in text
    assert "54 [53.76, 54.24]" in text
    assert "Male" in shown(one_column(troubled_heart(), "sex"))


def test_one_column_is_shown_by_group() -> None:
    text = shown(one_column(troubled_heart(), "chol"), 80)
    assert "chol in train, by 'sex'" in text
    groups = troubled_heart().splits["train"].groups
    for group in ("Female", "Male"):
        for site in (OVERALL, "va-long-beach"):
            feature = groups[group].features["chol"]
            each = feature.overall if site == OVERALL else feature.by_site[site]
            assert each.mean is not None
            (line, *_) = [x for x in text.splitlines() if x.startswith(f" {group}, {site} ")]
            assert f" {each.count:.0f} " in line
            assert f" {each.mean:.4g} " in line
    categories = shown(one_column(troubled_heart(), "cp"), 80)
    assert re.search(r"category +Female +Male", categories)
    assert "by 'sex'" not in shown(one_column(troubled_heart(), "sex"), 80)
    assert "by 'sex'" not in shown(one_column(heart(), "chol"), 80)


def test_a_group_that_a_site_withholds_is_told_with_the_reason() -> None:
    result = troubled_heart()
    split = result.splits["train"]
    group = split.groups["Female"]
    few = Summary(withheld=[Withheld(what="everything", reason="10 rows < minimum 20")])
    chol = group.features["chol"]
    chol = chol.model_copy(update={"by_site": {**chol.by_site, "switzerland": few}})
    group = group.model_copy(update={"features": {**group.features, "chol": chol}})
    split = split.model_copy(update={"groups": {**split.groups, "Female": group}})
    text = shown(one_column(result.model_copy(update={"splits": {"train": split}}), "chol"), 80)
    assert "- Female, switzerland: withheld, 10 rows < minimum 20" in text


def test_of_very_many_groups_only_all_sites_numbers_are_shown() -> None:
    result = troubled_heart()
    split = result.splits["train"]
    groups = {f"group-{number}": split.groups["Male"] for number in range(50)}
    split = split.model_copy(update={"groups": groups})
    text = shown(one_column(result.model_copy(update={"splits": {"train": split}}), "age"), 80)
    assert "group-39, all sites" in text
    assert "group-40" not in text
    assert "group-1, cleveland" not in text
    assert "- 10 more groups, and each site's numbers: in the HTML report" in text


def test_the_overview_says_where_groups_are_and_which_columns_correlate_most() -> None:
    text = shown(overview(troubled_heart()), 120)
    assert "by 'sex': see --feature NAME or the report" in text
    assert "by 'sex'" not in shown(overview(heart()), 120)
    found = troubled_heart().splits["train"].correlation
    assert found is not None
    matrix = np.abs(np.tril(np.array(found.values, float), -1))
    row, column = np.unravel_index(int(np.argmax(matrix)), matrix.shape)
    value = found.values[row][column]
    pair = f"{found.columns[column]} and {found.columns[row]} {value:.2f}"
    assert f"Strongest correlations: {pair}, " in text
    assert "Strongest correlations: chol and " in re.sub(
        r"correlations: (\w+) and chol", r"correlations: chol and \1",
        shown(one_column(troubled_heart(), "chol"), 120),
    )  # fmt: skip


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
