"""The privacy section of datasets.yaml: ranges, and which of two wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_federated.datasets.policy import Noise, PrivacyPolicy

policies = st.builds(
    PrivacyPolicy,
    minimum_rows=st.integers(1, 100),
    small_cell=st.integers(0, 50),
    small_missing=st.integers(0, 50),
    rows_per_bin=st.integers(1, 50),
    rows_per_category=st.integers(1, 50),
    minmax_noise=st.floats(0, 1),
    changed_rows=st.integers(0, 50),
    allowed_columns=st.none() | st.frozensets(st.sampled_from("abcd")),
    forbidden_columns=st.frozensets(st.sampled_from("abcd")),
    noise=st.none()
    | st.builds(
        Noise,
        mechanism=st.sampled_from(["laplace", "gaussian"]),
        epsilon=st.floats(0.1, 5),
        period_days=st.none() | st.integers(1, 90),
    ),
)


@given(policies, policies)
def test_the_stricter_of_two_wins_field_by_field(one: PrivacyPolicy, other: PrivacyPolicy) -> None:
    both = one.stricter(other)
    assert both == other.stricter(one)
    assert both.stricter(one) == both
    for name in ("minimum_rows", "small_cell", "small_missing", "rows_per_bin", "changed_rows"):
        assert getattr(both, name) == max(getattr(one, name), getattr(other, name))
    assert both.minmax_noise == max(one.minmax_noise, other.minmax_noise)
    assert set(both.allowed("abcd")) == set(one.allowed("abcd")) & set(other.allowed("abcd"))
    for asked in (1, 20):
        assert both.bins_for(200, asked) == min(
            one.bins_for(200, asked), other.bins_for(200, asked)
        )
    noises = [policy.noise for policy in (one, other) if policy.noise is not None]
    assert (both.noise is None) == (not noises)
    if both.noise is not None:
        assert both.noise.epsilon == min(noise.epsilon for noise in noises)
        periods = [noise.period_days for noise in noises]
        assert both.noise.period_days == (None if None in periods else max(p for p in periods if p))


def test_what_only_one_section_says_counts_as_it_is() -> None:
    top = PrivacyPolicy.model_validate({"minimum_rows": 1, "noise": {"epsilon": 0.5}})
    own = PrivacyPolicy.model_validate({"small_cell": 2, "noise": {"mechanism": "gaussian"}})
    both = top.stricter(own)
    assert (both.minimum_rows, both.small_cell, both.small_missing) == (1, 2, 5)
    assert both.noise is not None
    assert (both.noise.mechanism, both.noise.epsilon) == ("gaussian", 0.5)
    assert both.stricter(PrivacyPolicy()) == both
    assert both.stricter(PrivacyPolicy(minimum_rows=20)).minimum_rows == 20


def test_bounds_of_one_column_narrow_and_must_overlap() -> None:
    one, other = PrivacyPolicy(bounds={"age": (0, 120)}), PrivacyPolicy(bounds={"age": (18, 150)})
    assert one.stricter(other).bounds == {"age": (18, 120)}
    with pytest.raises(ValueError, match=r"'age'.*do not overlap"):
        one.stricter(PrivacyPolicy(bounds={"age": (200, 300)}))
    with pytest.raises(ValidationError, match="write the lower one first"):
        PrivacyPolicy(bounds={"age": (120, 0)})


def test_a_column_is_forbidden_however_it_is_written() -> None:
    policy = PrivacyPolicy(forbidden_columns=frozenset({"Name"}), allowed_columns=None)
    assert policy.allowed(["name", "NAME", "age"]) == ("age",)
    assert PrivacyPolicy(allowed_columns=frozenset({"age"})).allowed(["Age", "age"]) == ("age",)


def test_a_word_that_is_no_rule_is_an_error() -> None:
    with pytest.raises(ValidationError, match="minimum_row"):
        PrivacyPolicy.model_validate({"minimum_row": 20})


def test_few_rows_have_few_bins_and_too_few_none() -> None:
    policy = PrivacyPolicy(minimum_rows=20, rows_per_bin=10)
    assert [policy.bins_for(rows, 20) for rows in (19, 20, 55, 123, 1000)] == [0, 2, 5, 12, 20]
    assert PrivacyPolicy(minimum_rows=1, rows_per_bin=50).bins_for(5, 20) == 1


def test_every_rule_has_a_description_and_a_default() -> None:
    for model in (PrivacyPolicy, Noise):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert not field.is_required(), name


@pytest.mark.parametrize("rule", ["raw_rows", "training"])
def test_what_may_be_done_with_rows_needs_both_that_say_something(rule: str) -> None:
    yes, no = (PrivacyPolicy.model_validate({rule: each}) for each in (True, False))
    for one, other in ((yes, no), (no, yes), (no, no), (no, PrivacyPolicy())):
        assert getattr(one.stricter(other), rule) is False
    for one, other in ((yes, yes), (yes, PrivacyPolicy()), (PrivacyPolicy(), yes)):
        assert getattr(one.stricter(other), rule) is True
    neither = PrivacyPolicy().stricter(PrivacyPolicy())
    assert getattr(neither, rule) is getattr(PrivacyPolicy(), rule)
