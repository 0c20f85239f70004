"""FedAvg on virtual sites, against one process that has all rows."""

from pathlib import Path

import numpy as np
import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType

from prefect_federated import SimulationResult, simulate
from prefect_federated.errors import ConfigurationError, QuorumNotReached
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import ModelRef, read_model
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


def test_a_round_asks_some_sites_drawn_at_random_and_the_same_ones_again() -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 3, "sites_per_round": 0.4}
    results = [simulate(fedavg, sites=5, parameters=parameters) for _ in range(2)]
    for result in results:
        trained = [row["sites"] for row in result.metrics if row["kind"] == "train"]
        assert trained == ["2/2"] * 3
    np.testing.assert_array_equal(results[0].model["slopes"], results[1].model["slopes"])
    other = simulate(fedavg, sites=5, parameters={**parameters, "seed": 1})
    assert not np.array_equal(other.model["slopes"], results[0].model["slopes"])


def test_the_best_model_is_kept_beside_the_last_one() -> None:
    """The executor's learning rate is too large: the loss goes down, then up."""
    parameters: dict[str, JsonValue] = {
        "executor": f"{EXECUTOR}:growing", "rounds": 4, "best_by": "-loss"
    }  # fmt: skip
    result = simulate(fedavg, sites=2, parameters=parameters)
    measured = {row["round"]: row["loss"] for row in result.metrics if row["kind"] == "evaluate"}
    assert [measured[number] for number in (1, 2, 3, 4)] == [1, 0, 1, 4]
    best = read_model(result.path.with_name("best.safetensors"))
    assert (best["w"].tolist(), result.model["w"].tolist()) == ([2.0], [4.0])


def test_a_metric_that_nobody_measures_does_not_choose_the_best_model() -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 1, "best_by": "auc"}
    with pytest.raises(ConfigurationError, match=r"'auc', but executor .* measures loss"):
        simulate(fedavg, sites=2, parameters=parameters)


def test_filters_of_a_job_leave_the_model_and_say_what_they_did() -> None:
    filters: JsonValue = [
        {"filter": "cast", "at": "leaving_server", "to": "float16"},
        {"filter": "int8", "at": "leaving_site"},
    ]
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 3, "filters": filters}
    result = simulate(fedavg, sites=3, parameters=parameters)
    expected = centralized(SITES, 3)
    for name, array in expected.items():
        assert result.model[name].dtype == array.dtype
        np.testing.assert_allclose(result.model[name], array, atol=0.02)
    row = next(row for row in result.metrics if row["kind"] == "train")
    assert "leaving_server cast 120 B -> 30 B" in str(row["filters"])
    assert "leaving_site int8 120 B -> " in str(row["filters"])


def test_what_a_filter_keeps_at_the_sites_stays_as_it_is_in_the_global_model() -> None:
    filters: JsonValue = [
        {"filter": "exclude", "at": "leaving_site", "names": ["offset"], "kinds": ["train"]}
    ]
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 1, "filters": filters}
    result = simulate(fedavg, sites=3, parameters=parameters)
    assert result.model["offset"].tolist() == 0
    np.testing.assert_allclose(
        result.model["slopes"], centralized(SITES, 1)["slopes"], rtol=0, atol=1e-12
    )


def test_a_retry_of_the_flow_resumes_from_the_snapshot_when_a_quorum_was_not_reached(
    tmp_path: Path,
) -> None:
    retried = fedavg.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(("a", "b", "c"), 2, tmp_path, tmp_path)):
        reference = retried(
            executor="tests.tasks.counting_executor",
            rounds=3,
            quorum=0.6,
            config={"fails_once": ["a", "b"], "fails_once_in": 2},
        )
    rows = [row for row in reference.history if row["kind"] == "train"]
    assert [(row["round"], row["sites"]) for row in rows] == [(1, "3/3"), (2, "3/3"), (3, "3/3")]
    # Each round adds the weighted mean of 1, 2 and 3.
    assert read_model(Path(reference.path))["sum"].tolist() == [3 * (1 + 4 + 9) / 6]
