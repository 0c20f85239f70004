"""Steps of what is tracked, and what of it may be logged."""

import math

import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.tracking import (
    Axis,
    MetricPoint,
    Recorded,
    check_installed,
    without_credentials,
)


def live(step: int | None, round: int, name: str = "live/train/loss") -> MetricPoint:
    return MetricPoint("a", name, 0.5, step, 0.0, round)


def steps(*points: MetricPoint, recorded: Recorded | None = None) -> list[int | None]:
    axis = Axis(recorded or {})
    placed = [axis.placed(point) for point in points]
    return [point.step for point in placed if point is not None]


def test_steps_that_begin_anew_in_each_round_follow_each_other() -> None:
    points = [live(step, round) for round in (1, 2, 3) for step in (1, 2, 3)]
    assert steps(*points) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    points = [live(step, round) for round in (1, 2) for step in (0, 1, 2)]
    assert steps(*points) == [0, 1, 2, 3, 4, 5]
    assert steps(*(live(step, round) for round in (1, 2) for step in (10, 20))) == [10, 20, 30, 40]


def test_steps_that_are_counted_over_the_job_stay_what_they_are() -> None:
    assert steps(live(1, 1), live(5, 1), live(6, 2), live(9, 2), live(7, 2)) == [1, 5, 6, 9, 7]


def test_what_has_no_step_comes_after_the_one_before_in_its_own_series() -> None:
    other = live(None, 1, "live/train/accuracy")
    assert steps(live(None, 1), live(None, 1), other, live(None, 2)) == [0, 1, 0, 2]
    assert steps(live(7, 1), live(None, 1), live(-4, 1), live(1 << 80, 2)) == [7, 8, 0, 1 << 53]


def test_a_job_that_goes_on_records_no_round_twice_and_puts_the_sites_steps_after() -> None:
    recorded: Recorded = {
        ("a", "live/train/loss"): {1: 0.5, 2: 0.5}, ("a", "train/loss"): {1: 0.25, 2: math.nan}
    }  # fmt: skip
    assert steps(live(1, 2), live(None, 2), recorded=recorded) == [3, 4]
    again = [
        MetricPoint("a", "train/loss", 0.25 * (1 + 1e-8), 1, 9.0, 1),
        MetricPoint("a", "train/loss", math.nan, 2, 9.0, 2),
        MetricPoint("a", "train/loss", 0.125, 3, 9.0, 3),
        MetricPoint("b", "train/loss", 0.25, 1, 9.0, 1),
    ]
    assert steps(*again, recorded=recorded) == [3, 1]
    changed = MetricPoint("a", "train/loss", 0.75, 1, 9.0, 1)
    assert steps(changed, recorded=recorded) == [1]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("GET https://ann:s3cret@host:5000/api failed", ""),
        ("no postgresql://ann:p%40s3cret@db/mlflow", "postgresql://ann:p%40s3cret@db/mlflow"),
        ("password p@s3cret is wrong", "mysql://ann:p%40s3cret@db/mlflow"),
        ("password s3cret is wrong", "http://ann:s3cret@host"),
        ("cannot open https://host/x?token=s3cret", "https://host/x?token=s3cret"),
        ("http://[s3cret", "http://[s3cret"),
    ],
)
def test_no_credentials_stay_in_a_text(text: str, url: str) -> None:
    assert "s3cret" not in without_credentials(text, url)


def test_a_tracker_that_is_not_installed_is_named_with_its_extra() -> None:
    check_installed("json", "--json")
    with pytest.raises(ConfigurationError, match=r"--x asks for no_tracker.*federated\[no_tracker"):
        check_installed("no_tracker", "--x")
