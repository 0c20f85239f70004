"""What a call may say of itself, and what it may not."""

from typing import Any

import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.terms import Terms, call_terms

JOB = JobParameters(
    executor="any.thing", quorum=3, round_timeout_s=50, grace_s=5, late_weight=0.5, in_flight=4
)


def test_a_call_has_the_terms_of_its_job_where_it_does_not_say_others() -> None:
    terms = call_terms("train", {}, JOB)
    assert (terms.quorum, terms.timeout_s, terms.grace_s) == (3, 50, 5)
    assert (terms.late, terms.in_flight, terms.round) == (0.5, 4, 0)
    said: Terms = {
        "quorum": 2.0, "timeout_s": 0.5, "grace_s": None, "late_weight": 0, "in_flight": None,
        "round": 7,
    }  # fmt: skip
    terms = call_terms("train", said, JOB)
    assert (terms.quorum, terms.timeout_s, terms.grace_s) == (2, 0.5, None)
    assert isinstance(terms.quorum, int)
    assert (terms.late, terms.in_flight, terms.round) == (0, None, 7)


@pytest.mark.parametrize("quorum", [0, 1, 12, 1.0, 0.01, 3.0, None])
def test_a_quorum_is_a_share_or_a_count(quorum: float | None) -> None:
    call_terms("train", {"quorum": quorum}, JOB)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("quorum", value) for value in (True, -1, 0.0, -0.5, 1.5, float("nan"), "2")],
        *[("timeout_s", value) for value in (0, -1, True, float("inf"))],
        *[("grace_s", value) for value in (-1, "5")],
        *[("in_flight", value) for value in (0, -1, 1.5, True)],
        *[("late_weight", value) for value in (-0.1, 1.1, None, True)],
        *[("round", value) for value in (-1, 1.5)],
    ],
)
def test_terms_that_cannot_be_are_refused_with_what_was_given(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"train was asked with {name}="):
        call_terms("train", {name: value}, JOB)  # type: ignore[misc]


def test_a_term_that_is_misspelt_is_not_overlooked() -> None:
    with pytest.raises(
        ConfigurationError, match="asked with qourum; what a call may say is config"
    ):
        call_terms("train", {"qourum": 2}, JOB)  # type: ignore[typeddict-unknown-key]
