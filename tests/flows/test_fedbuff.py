"""FedBuff on virtual sites, against its closed forms."""

import inspect
import sys

import numpy as np
import pytest

from prefect_federated import simulate
from prefect_federated.errors import QuorumNotReached
from prefect_federated.flows.fedbuff import fedbuff
from prefect_federated.messages import JsonValue
from tests.flows import trial_executors as trial

EXECUTOR = "tests.flows.trial_executors"

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.mark.parametrize("updates_per_round", [1, 3])
def test_with_one_site_each_step_is_a_step_on_its_rows(updates_per_round: int) -> None:
    """No update is stale, and the updates of a step are alike: full-batch gradient steps."""
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR, "rounds": 4, "updates_per_round": updates_per_round
    }  # fmt: skip
    result = simulate(fedbuff, sites=1, parameters=parameters)
    expected = trial.start()
    for _ in range(4):
        expected, _ = trial.step(expected, *trial.rows("site-1"))
    for name, array in expected.items():
        # model + (stepped - model) differs from stepped in its last digits
        np.testing.assert_allclose(result.model[name], array, rtol=0, atol=1e-12)
    rounds = [row for row in result.metrics if row["kind"] == "train"]
    assert [row["round"] for row in rounds] == [1, 2, 3, 4]
    assert {row["sites"] for row in rounds} == {f"{updates_per_round}/{updates_per_round}"}


def test_stale_updates_weigh_less_and_the_fast_site_does_not_wait() -> None:
    """Site-2 answers once, two steps late, with `1 / sqrt(1 + 2)` of its change."""
    parameters: dict[str, JsonValue] = {
        "executor": "tests.flows.staleness_executor", "rounds": 4, "updates_per_round": 1,
        "server_lr": 0.5,
    }  # fmt: skip
    result = simulate(fedbuff, sites=2, threads=2, parameters=parameters)
    # Site-1 makes steps 1 and 2 by 1; site-2, asked before step 1, makes step 3 by 100; the update
    # of site-1 that was asked for step 3 makes step 4.
    expected = 0.5 * (1 + 1 + 100 / np.sqrt(3) + 1 / np.sqrt(2))
    np.testing.assert_allclose(result.model["w"], [expected], rtol=1e-12)


def test_a_site_that_fails_leaves_the_steps_to_the_others() -> None:
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR, "rounds": 3, "updates_per_round": 2,
        "config": {"raises_at": ["site-1"]},
    }  # fmt: skip
    result = simulate(fedbuff, sites=2, threads=2, parameters=parameters)
    expected = trial.start()
    for _ in range(3):
        expected, _ = trial.step(expected, *trial.rows("site-2"))
    np.testing.assert_allclose(result.model["slopes"], expected["slopes"], rtol=0, atol=1e-12)


def test_no_site_that_can_train_ends_the_job() -> None:
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR, "rounds": 3, "config": {"raises_at": ["site-1", "site-2"]}
    }  # fmt: skip
    with pytest.raises(QuorumNotReached, match="no site is connected"):
        simulate(fedbuff, sites=2, threads=2, parameters=parameters)


def test_the_flow_is_short_enough_to_be_read_at_once() -> None:
    source = inspect.getsource(sys.modules["prefect_federated.flows.fedbuff"])
    assert len(source.splitlines()) < 80
