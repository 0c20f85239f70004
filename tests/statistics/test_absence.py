"""What is known of missing values: exactly, or from the reason for which a site keeps it back."""

import pytest

from prefect_federated.statistics.absence import Absence, absence, absence_words, together
from prefect_federated.statistics.schema import (
    OVERALL,
    Feature,
    Split,
    SplitAtSite,
    Summary,
    Withheld,
)
from prefect_federated.statistics.stand_outs import stand_outs

NEARLY_ALL = Summary(withheld=[Withheld(what="everything", reason="fewer than 20 values")])
NEARLY_NONE = Summary(
    withheld=[Withheld(what="count, missing", reason="fewer than 5 values are missing or infinite")]
)


def test_counts_that_are_released_are_exact() -> None:
    found = absence(Summary(count=8, missing=2, infinite=0), None)
    assert found == Absence(2, 2, 10)
    assert absence(Summary(count=0, missing=0), 0) is None


def test_too_few_values_mean_that_nearly_all_are_missing() -> None:
    assert absence(NEARLY_ALL, 293) == Absence(274, 293, 293)
    assert absence(NEARLY_ALL, 12) == Absence(0, 12, 12)
    assert absence(NEARLY_ALL, None) is None


def test_too_few_that_are_missing_mean_that_there_are_nearly_all() -> None:
    assert absence(NEARLY_NONE, 304) == Absence(0, 4, 304)


def test_other_reasons_tell_nothing() -> None:
    reason = Withheld(what="everything", reason="the site does not let this column be used")
    assert absence(Summary(withheld=[reason]), 300) is None


def heart_ca() -> tuple[Feature, Split]:
    """Returns the column ca as the four hospitals release it by their default policies."""
    rows = {"cleveland": 304, "hungary": 293, "switzerland": 123, "va-long-beach": 200}
    exact = Summary(count=299, missing=5, infinite=0, mean=0.67, variance=0.9)
    by_site = {"cleveland": exact, **dict.fromkeys(list(rows)[1:], NEARLY_ALL)}
    feature = Feature(kind="numeric", overall=exact, by_site=by_site)
    sites = {site: SplitAtSite(rows=size) for site, size in rows.items()}
    return feature, Split(rows=920, sites=sites, features={"ca": feature})


def test_a_column_that_is_mostly_missing_is_obvious_also_where_its_numbers_are_withheld() -> None:
    feature, split = heart_ca()
    rows = {site: there.rows for site, there in split.sites.items()}
    whole = together(feature, rows)
    assert whole == Absence(5 + 274 + 104 + 181, 5 + 293 + 123 + 200, 920)
    assert whole.low <= 611 <= whole.high  # so many are missing
    (note,) = stand_outs("ca", feature, rows)
    assert note == (
        "ca: 61 to 68 % of all values are missing: hungary 94 % or more, va-long-beach 90 % or "
        "more, switzerland 85 % or more and cleveland 1.6 %."
    )
    assert absence_words(feature, split, OVERALL) == "61 to 68 %"


def test_a_site_that_lacks_the_column_is_not_one_that_withholds() -> None:
    feature, split = heart_ca()
    less = feature.model_copy(update={"without": ["basel"]})
    assert absence_words(less, split, "basel") == "no column"
    silent = Summary(withheld=[Withheld(what="everything", reason="11 rows < minimum 20")])
    other = feature.model_copy(update={"by_site": {"cleveland": silent}})
    assert absence_words(other, split, "cleveland") == "withheld"


def test_categories_that_are_not_named_do_not_make_the_named_ones_more() -> None:
    named = Summary(count=200, missing=0, infinite=0, categories={"a": 100.0, "b": 100.0})
    some = Summary(count=200, missing=0, infinite=0, categories={"a": 100.0}, other_categories=100)
    feature = Feature(
        kind="categorical", overall=named, by_site={"x": some, "y": named, "z": named}
    )
    assert stand_outs("c", feature, {}) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Absence(0, 0, 5), "0 %"),
        (Absence(5, 5, 5), "100 %"),
        (Absence(0, 5, 5), "up to 100 %"),
        (Absence(1, 1, 3), "33 %"),
    ],
)
def test_words(found: Absence, words: str) -> None:
    assert found.words() == words
