"""A run beside the one before: what has drifted is found, what cannot be compared is said."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from prefect_federated.statistics.drift import compare
from prefect_federated.statistics.schema import (
    OVERALL,
    Comparison,
    Drift,
    Feature,
    Histogram,
    SiteState,
    Statistics,
    Summary,
    Withheld,
)
from tests.statistics.made import heart, statistics_of

SITES = ("north", "south")


def made(**columns: object) -> Statistics:
    """Returns a result of two sites that have the same rows."""
    frame = pd.DataFrame(columns)
    return statistics_of(
        {"train": dict.fromkeys(SITES, frame)}, dataset="trial", name="statistics/trial"
    )


def changed(result: Statistics, site: str, summary: Summary, column: str = "x") -> Statistics:
    """Returns a result in which a site has other numbers of a column."""
    split = result.splits["train"]
    feature = split.features[column]
    feature = feature.model_copy(update={"by_site": {**feature.by_site, site: summary}})
    return with_features(result, {**split.features, column: feature})


def with_features(result: Statistics, features: dict[str, Feature]) -> Statistics:
    split = result.splits["train"].model_copy(update={"features": features})
    return result.model_copy(update={"splits": {"train": split}})


def drift(compared: Comparison, site: str, feature: str = "x") -> Drift:
    (found,) = (d for d in compared.drifts if (d.site, d.feature) == (site, feature))
    return found


def values(counts: Sequence[float], **more: object) -> Summary:
    histogram = Histogram(edges=list(range(len(counts) + 1)), counts=list(counts))
    told = {"count": sum(counts), "missing": 0, "histogram": histogram, **more}
    return Summary.model_validate(told)


def test_the_same_data_have_not_drifted() -> None:
    compared = compare(heart(), heart())
    assert len(compared.drifts) == 2 * 14 * 5
    assert not any(each.is_past_threshold for each in compared.drifts)
    assert {each.psi for each in compared.drifts} == {0.0}
    assert compared.notes == []


def test_a_site_whose_values_move_is_found_and_comes_first() -> None:
    before = made(x=np.arange(200.0), y=np.arange(200.0))
    edges = before.splits["train"].features["x"].by_site["south"].histogram
    assert edges is not None
    last = Histogram(edges=edges.edges, counts=[0.0] * 19 + [200.0])
    now = changed(before, "south", Summary(count=200, missing=0, histogram=last))
    compared = compare(now, before)
    first = compared.drifts[0]
    assert (first.site, first.feature, first.is_past_threshold) == ("south", "x", True)
    assert first.ks == pytest.approx(0.95)  # all is in the last of 20 bins
    assert not drift(compared, "north").is_past_threshold
    assert compared.run == before.run


def test_thresholds_are_those_that_are_given() -> None:
    before = changed(made(x=np.arange(4.0)), "north", values([500, 500]))
    now = changed(before, "north", values([600, 400]))
    assert not drift(compare(now, before, 0.2, 0.2), "north").is_past_threshold
    assert drift(compare(now, before, 0.2, 0.09), "north").is_past_threshold
    found = drift(compare(now, before, 0.03, 0.2), "north")
    assert found.is_past_threshold
    assert found.ks == pytest.approx(0.1)
    assert found.psi == pytest.approx(0.1 * np.log(1.2) + 0.1 * np.log(1.25), rel=0.01)


def test_few_values_that_differ_by_chance_are_noted_and_not_drift() -> None:
    before = changed(made(x=np.arange(4.0)), "north", values([10, 10]))
    now = changed(before, "north", values([13, 7]))
    compared = compare(now, before, 0.05, 0.1)
    assert not drift(compared, "north").is_past_threshold
    assert any("not beyond chance" in note and "x at north" in note for note in compared.notes)


def test_a_column_that_is_emptied_has_drifted() -> None:
    before = made(x=np.arange(200.0))
    now = changed(before, "south", Summary(count=0, missing=200, infinite=0))
    found = drift(compare(now, before), "south")
    assert found.is_past_threshold
    assert found.ks is None
    back = drift(compare(before, now), "south")
    assert back.is_past_threshold


def test_a_site_that_withholds_only_how_many_values_it_has_is_compared() -> None:
    told = values([300, 100]).model_copy(update={"count": None, "missing": None})
    before = changed(made(x=np.arange(4.0)), "north", told)
    now = changed(
        before, "north", values([100, 300]).model_copy(update={"count": None, "missing": None})
    )
    found = drift(compare(now, before), "north")
    assert found.is_past_threshold
    assert found.ks == pytest.approx(0.5)


def test_categories_are_compared_by_name_and_have_no_order() -> None:
    before = made(x=["a"] * 150 + ["b"] * 50)
    moved = Summary(count=200, missing=0, categories={"a": 50.0, "c": 150.0})
    found = drift(compare(changed(before, "south", moved), before), "south")
    assert found.is_past_threshold
    assert found.ks is None


def test_datetimes_are_compared_like_numbers() -> None:
    days = pd.date_range("2026-01-01", periods=100)
    before = made(x=days)
    assert drift(compare(before, before), OVERALL).ks == 0


def test_nothing_is_left_out_silently() -> None:
    before = made(x=np.arange(200.0), gone=np.arange(200.0), kind=np.arange(200.0))
    reason = Withheld(what="everything", reason="11 rows < minimum 20")
    now = changed(before, "south", Summary(withheld=[reason]))
    features = dict(now.splits["train"].features)
    features["new"] = features.pop("gone")
    features["kind"] = made(kind=["a", "b"] * 100).splits["train"].features["kind"]
    now = with_features(now, features).model_copy(
        update={
            "sites": {
                "north": SiteState(state="answered"),
                "south": SiteState(state="absent", reason="it is not connected"),
                "east": SiteState(state="answered"),
            },
            "splits": {**with_features(now, features).splits, "test": before.splits["train"]},
            "group_by": "kind",
        }
    )
    said = "\n".join(compare(now, before).notes)
    for what in (
        "withheld now, 11 rows < minimum 20: x at south in train",
        "column gone: in the run before only",
        "column new: in this run only",
        "column kind was numeric and is categorical now, not compared",
        "site absent now: south (it is not connected)",
        "site asked in this run only: east",
        "split test: in this run only",
        "groups are not compared",
    ):
        assert what in said


def test_what_was_moved_or_has_gaps_says_so() -> None:
    before = changed(made(x=np.arange(4.0)), "north", values([50, 50, 100]))
    other = Histogram(edges=[0, 1.5, 3], counts=[75, 125])
    now = changed(before, "north", Summary(count=200, missing=0, histogram=other))
    compared = compare(now, before)
    assert not drift(compared, "north").is_past_threshold
    assert any("the bins differ" in note for note in compared.notes)
    gaps = Histogram(edges=[0, 1, 2, 3], counts=[50, None, 100])
    now = changed(before, "north", Summary(count=200, missing=0, histogram=gaps))
    compared = compare(now, before)
    assert drift(compared, "north").psi == pytest.approx(0, abs=1e-12)
    assert any("withheld" in note for note in compared.notes)


def test_all_sites_together_are_compared_only_if_the_same_sites_have_told() -> None:
    before = made(x=np.arange(200.0))
    feature = before.splits["train"].features["x"]
    alone = feature.model_copy(
        update={
            "overall": values([0, 0, 0, 200]),
            "by_site": {"south": feature.by_site["south"]},
            "without": ["north"],
        }
    )
    compared = compare(with_features(before, {"x": alone}), before)
    assert {(each.site, each.is_past_threshold) for each in compared.drifts} == {("south", False)}
    assert any(
        note.startswith("told by other sites than in the run before") and OVERALL in note
        for note in compared.notes
    )
