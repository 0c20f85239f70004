"""FedAvg on virtual sites, against one process that has all rows."""

import numpy as np
import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType

from prefect_federated import SimulationResult, simulate
from prefect_federated.errors import QuorumNotReached
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.snapshots import ModelRef
from tests.agents.network import eventually
from tests.flows import trial_executors as trial

EXECUTOR = "tests.flows.trial_executors"
SITES = ["site-1", "site-2", "site-3"]

pytestmark = pytest.mark.usefixtures("prefect_api")


def centralized(sites: list[str], rounds: int) -> dict[str, trial.Matrix]:
    """Trains on the pooled rows of all sites."""
    x, y = (np.concatenate(parts) for parts in zip(*map(trial.rows, sites), strict=True))
    model = trial.start()
    for _ in range(rounds):
        model, _ = trial.step(model, x, y)
    return model


def assert_is(result: SimulationResult, expected: dict[str, trial.Matrix]) -> None:
    # Sums of some hundred products in another order: a few hundred times 2**-53, of values near 1.
    for name, array in expected.items():
        got = np.asarray(result.model[name], np.float64)
        np.testing.assert_allclose(got, array, rtol=0, atol=1e-12)


def test_rounds_of_one_full_batch_step_are_steps_on_the_pooled_rows() -> None:
    result = simulate(fedavg, sites=3, threads=2, parameters={"executor": EXECUTOR, "rounds": 3})
    assert_is(result, centralized(SITES, 3))

    kinds = [(row["round"], row["kind"], row["sites"]) for row in result.metrics]
    rounds = [(number, "train", "3/3") for number in (1, 2, 3)]
    assert kinds == [(0, "initialize", "1/1"), *rounds, (0, "evaluate", "3/3")]
    first, last = result.metrics[1], result.metrics[-1]
    pooled = np.concatenate([trial.rows(site)[1] for site in SITES])
    assert first["loss"] == pytest.approx(np.mean(pooled**2), rel=1e-6)  # the zero model's
    assert isinstance(last["loss"], float)
    assert last["loss"] < 0.9 * float(str(first["loss"]))
    assert first["bytes_received"] == 3 * (4 + 1) * 8
    assert int(str(first["bytes_sent"])) > 3 * (4 + 1) * 8
    assert first["failures"] == ""

    assert isinstance(result.returned, ModelRef)
    assert (result.returned.round, result.path.name) == (3, "model.safetensors")
    names = task_runs(result.path.parent.name, count=1 + 3 * (3 + 1) + 3)
    assert {f"round {n} · train · {site}" for n in (1, 2, 3) for site in SITES} <= names.keys()
    assert {"initialize · site-1", "evaluate · site-3", "round 2 · snapshot"} <= names.keys()
    assert set(names.values()) == {StateType.COMPLETED}


def task_runs(flow_run_id: str, count: int) -> dict[str, StateType | None]:
    """Returns the names of a flow run's task runs, as the UI shows them, with their states."""
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))

        def finished() -> dict[str, StateType | None]:
            runs = client.read_task_runs(flow_run_filter=wanted)
            final = [run for run in runs if run.state is not None and run.state.is_final()]
            return {run.name: run.state_type for run in final} if len(final) == count else {}

        return eventually(finished, "the task runs' events arrive")


def test_the_loop_form_gives_the_same_model_as_the_function_form() -> None:
    parameters: dict[str, JsonValue] = {"executor": f"{EXECUTOR}:loop", "rounds": 3}
    result = simulate(fedavg, sites=3, threads=1, parameters=parameters)
    assert_is(result, centralized(SITES, 3))
    assert [row["kind"] for row in result.metrics] == ["initialize", *["train"] * 3]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"raises_at": ["site-2"]}, "site-2: ValueError: no rows in round 1"),
        ({"wrong_shape_at": ["site-2"]}, "tensor 'slopes' is F64 (5,), the global model has F64"),
    ],
)
def test_one_site_of_five_that_fails_leaves_the_model_to_the_others(
    config: dict[str, JsonValue], reason: str
) -> None:
    result = simulate(
        fedavg,
        sites=5,
        parameters={"executor": EXECUTOR, "rounds": 2, "config": config},
    )
    assert_is(result, centralized(["site-1", "site-3", "site-4", "site-5"], 2))
    assert [row["sites"] for row in result.metrics] == ["1/1", "4/5", "4/5", "5/5"]
    assert reason in str(result.metrics[1]["failures"])
    assert "secret" not in str(result.metrics)
    names = task_runs(result.path.parent.name, count=1 + 2 * (5 + 1) + 5)
    failed = {name for name, state in names.items() if state is StateType.FAILED}
    assert failed == {"round 1 · train · site-2", "round 2 · train · site-2"}


def test_quorum_not_reached_stops_the_job() -> None:
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR,
        "rounds": 2,
        "quorum": 0.6,
        "config": {"raises_at": ["site-1", "site-2"]},
    }
    with pytest.raises(QuorumNotReached, match=r"round 1, train: 2 of 4 .* the quorum is 3"):
        simulate(fedavg, sites=4, parameters=parameters)


def test_a_job_may_begin_with_a_model_file() -> None:
    earlier = simulate(fedavg, sites=2, parameters={"executor": EXECUTOR, "rounds": 2})
    later = simulate(
        fedavg,
        sites=2,
        output=earlier.path.parent.parent,
        parameters={"executor": EXECUTOR, "rounds": 1, "initial_model": str(earlier.path)},
    )
    assert_is(later, centralized(["site-1", "site-2"], 3))
    assert "initialize" not in {row["kind"] for row in later.metrics}
