"""A job under a fault of each kind; `benchmarks.chaos` does it for as long as you like."""

from pathlib import Path

import pytest

from benchmarks.chaos import Plan, run_under_faults
from benchmarks.faults import FAULTS

LONG = ("site off-line", "API killed", "disk full at the server", "garbage streak")
PLAN = Plan(
    minutes=2,
    seed=1,
    model_bytes=1_000_000,
    faults=[name for name in FAULTS if name not in LONG],
    in_order=True,
)


@pytest.mark.timeout(900)
def test_a_job_survives_a_fault_of_each_kind_with_the_model_of_a_run_without_faults(
    tmp_path: Path,
) -> None:
    result = run_under_faults(PLAN, tmp_path / "chaos")
    assert result["completed"], result["state"]
    assert result["model_equal"], result["wrongs"]
    assert result["rounds_lost"] == 0, result["rounds_lost_names"]
    assert result["left_running"] == 0, result["left_running_names"]
    assert result["processes_after_the_job"] == []
    recoveries = result["recovery_s"]
    assert isinstance(recoveries, list)
    never = [each for each in recoveries if isinstance(each, dict) and None in each.values()]
    assert [each["fault"] for each in recoveries if isinstance(each, dict)] == PLAN.faults
    assert never == []
