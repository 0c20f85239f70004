"""Notes on what differs at a site: found where it is so, and silent where it is chance."""

import numpy as np
import pandas as pd
import pytest

from prefect_federated.statistics.absence import rows_of
from prefect_federated.statistics.schema import OVERALL, Summary
from prefect_federated.statistics.stand_outs import all_stand_outs, found_in, stand_outs
from tests.statistics.made import heart, statistics_of, troubled_heart

RANDOM = np.random.default_rng(0)


def notes(**sites: object) -> list[str]:
    """Returns the notes on one column, x, of sites with these values."""
    frames = {site: pd.DataFrame({"x": values}) for site, values in sites.items()}
    result = statistics_of({"train": frames}, dataset="trial", name="trial")
    split = result.splits["train"]
    return stand_outs("x", split.features["x"], rows_of(split))


def normal(mean: float = 0.0, size: int = 200, spread: float = 1.0) -> np.ndarray:
    return RANDOM.normal(mean, spread, size)


def test_the_two_findings_of_the_heart_example_come_first() -> None:
    found = all_stand_outs(heart())
    assert [(each.feature, each.site, each.splits) for each in found[:2]] == [
        ("chol", "switzerland", ("train", "test")),
        ("ca", OVERALL, ("train", "test")),
    ]


def test_a_finding_in_several_splits_is_one() -> None:
    keys = [(each.feature, each.site, each.rule) for each in all_stand_outs(troubled_heart())]
    assert len(keys) == len(set(keys))


def test_a_constant_column_stands_out_and_so_does_the_value() -> None:
    (note,) = notes(a=np.zeros(50), b=normal(200, spread=50), c=normal(200, spread=50))
    assert note.startswith("x: a has the value 0 in all its 50 values; elsewhere the mean is ")


def test_a_column_that_is_constant_everywhere_does_not_stand_out() -> None:
    assert notes(a=np.ones(50), b=np.ones(50), c=np.ones(20)) == []


def test_noise_hides_whether_all_values_are_the_same() -> None:
    frames = {"a": pd.DataFrame({"x": np.zeros(50)}), "b": pd.DataFrame({"x": normal()})}
    result = statistics_of({"train": frames}, dataset="trial", name="trial")
    feature = result.splits["train"].features["x"]
    noised = feature.by_site["a"].model_copy(update={"noise": "Laplace, epsilon 1"})
    feature = feature.model_copy(update={"by_site": {**feature.by_site, "a": noised}})
    assert not any("in all its" in note for note in stand_outs("x", feature, {}))


def test_one_category_stands_out_only_if_chance_would_hardly_make_it() -> None:
    common, rare = ["m"] * 95 + ["f"] * 5, ["m"] * 50 + ["f"] * 50
    assert notes(a=["m"] * 20, b=common, c=common) == []  # 0.95 ** 20 = 0.36
    (note,) = notes(a=["m"] * 20, b=rare, c=rare)
    assert note == "x: a has the category 'm' in all 20 values; elsewhere 50 % of them."


def test_missing_values_stand_out_at_a_site_or_of_the_whole_column() -> None:
    gone = np.full(100, np.nan)
    (note,) = notes(a=[*normal(size=60), *gone[:40]], b=normal(), c=normal(), d=normal())
    assert note == "x: a has 40 % missing (40 of 100), against 0 % elsewhere."
    (note,) = notes(a=gone, b=normal(), c=normal())
    assert note == "x: a has no value at all (100 rows), against 0 % elsewhere."
    (note, *_) = notes(a=gone, b=gone, c=normal(size=100))
    assert note.startswith("x: two thirds of all values are missing (200 of 300): a 100 %, b 100 %")
    (note, *_) = notes(a=gone, b=gone)
    assert note == "x: all values are missing (200 of 200): a 100 % and b 100 %."


def test_a_mean_far_off_stands_out() -> None:
    (note,) = notes(a=normal(10), b=normal(), c=normal())
    assert note.startswith("x: the mean at a is ")
    assert "standard deviations apart" in note


def test_of_two_sites_a_difference_is_said_once() -> None:
    assert len(notes(a=normal(10), b=normal())) == 1


def test_a_spread_far_off_and_a_shape_far_off_stand_out() -> None:
    (note,) = notes(a=normal(spread=8.0), b=normal(), c=normal())
    assert "standard deviation at a" in note
    halves = np.concatenate([normal(-1, spread=0.1), normal(1, spread=0.1)])
    (note,) = notes(a=halves, b=normal(spread=0.3, size=800), c=normal(spread=0.3, size=800))
    assert " at a " in note


@pytest.mark.parametrize("size", [12, 40, 400])
def test_samples_of_one_distribution_do_not_stand_out(size: int) -> None:
    for _ in range(20):
        words = RANDOM.choice(["a", "b", "c"], size=(3, size))
        assert notes(a=normal(size=size), b=normal(size=size), c=normal(size=size)) == []
        assert notes(a=words[0], b=words[1], c=words[2]) == []


def test_infinite_values_stand_out() -> None:
    feature = heart().splits["train"].features["age"]
    one = feature.by_site["hungary"].model_copy(update={"infinite": 1})
    feature = feature.model_copy(update={"by_site": {"hungary": one}})
    assert "hungary has 1 infinite value;" in stand_outs("age", feature, {})[0]


def test_a_site_that_withholds_everything_is_no_finding() -> None:
    feature = heart().splits["train"].features["age"]
    silent = feature.model_copy(update={"by_site": dict.fromkeys(feature.by_site, Summary())})
    assert found_in("age", silent, {}) == []
