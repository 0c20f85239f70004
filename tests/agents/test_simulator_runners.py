"""Simulated jobs on threads, in processes and on Dask: the same model, bounded records."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Running
from prefect.utilities.engine import emit_task_run_state_change_event

from prefect_federated import simulate
from prefect_federated.agents.simulator import SimulationResult
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.dask_runner import note_lost
from tests.agents.network import eventually

EXECUTOR = "tests.transport.batch_executors"

pytestmark = pytest.mark.usefixtures("prefect_api")


def job(rounds: int, quorum: float = 1.0, **config: JsonValue) -> dict[str, JsonValue]:
    return {"executor": EXECUTOR, "rounds": rounds, "quorum": quorum, "config": config}


def task_runs(result: SimulationResult) -> list[tuple[str, str]]:
    """Returns the names and states of the Prefect task runs of a simulated job."""
    flow_run = result.path.parent.name
    query = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
    with get_client(sync_client=True) as client:  # it asks again while the database is locked
        found = client.request("POST", "/task_runs/filter", json=query).json()
    return [(run["name"], run["state_name"]) for run in found]


def test_threads_and_processes_give_the_same_model_and_keep_the_sites_state(
    tmp_path: Path,
) -> None:
    on_threads = simulate(sites=20, threads=1, output=tmp_path / "t", parameters=job(3))
    in_processes = simulate(sites=20, processes=2, output=tmp_path / "p", parameters=job(3))
    np.testing.assert_allclose(in_processes.model["w"], on_threads.model["w"], rtol=1e-14)
    assert [row["count"] for row in in_processes.metrics if row["kind"] == "train"] == [1, 2, 3]
    counts = [path.read_text() for path in (tmp_path / "p" / "state").glob("*/*/trained")]
    assert counts == ["3"] * 20


def test_with_one_lane_a_model_is_the_same_to_the_last_bit_every_time(tmp_path: Path) -> None:
    models = [
        simulate(
            sites=20, threads=1, processes=processes, output=tmp_path / name, parameters=job(2)
        ).model["w"]
        for name, processes in (("a", None), ("b", None), ("c", 1))
    ]
    for model in models[1:]:
        np.testing.assert_array_equal(model, models[0])


def test_prefects_records_of_a_round_do_not_grow_with_the_sites(tmp_path: Path) -> None:
    recorded = []
    for sites in (40, 400):
        result = simulate(
            sites=sites,
            threads=2,
            output=tmp_path / str(sites),
            parameters={**job(1), "min_sites": sites},
        )
        assert [row["sites"] for row in result.metrics] == ["1/1", f"{sites}/{sites}"]
        recorded.append(len([name for name, _ in task_runs(result) if "train" in name]))
    assert recorded[0] <= 8
    assert recorded[1] <= recorded[0]


@pytest.fixture
def strict_dask() -> Iterator[None]:
    """Makes a Dask cluster give a batch up with the first worker that it loses to it."""
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        yield


def test_a_dask_worker_that_dies_is_replaced_and_its_batch_is_done_by_another(
    tmp_path: Path,
) -> None:
    result = simulate(
        sites=12,
        runner="dask",
        processes=2,
        output=tmp_path,
        parameters=job(2, dies_at="site-5", round=2, once=True),
    )
    assert [row["sites"] for row in result.metrics] == ["1/1", "12/12", "12/12"]
    assert next((tmp_path / "state").glob("*/site-5/died")).exists()
    expected = simulate(sites=12, threads=1, output=tmp_path / "t", parameters=job(2))
    # A site of the lost batch that had trained already has done so once more: its weight is 3.
    assert result.metrics[1]["count"] == expected.metrics[1]["count"] == 1
    assert len([name for name, _ in task_runs(result) if "on Dask" in name]) <= 9


def test_a_batch_that_is_lost_on_dask_costs_its_sites_not_the_job(
    strict_dask: None, tmp_path: Path
) -> None:
    result = simulate(
        sites=12,
        runner="dask",
        processes=2,
        output=tmp_path,
        parameters=job(2, quorum=0.5, dies_at="site-5", round=2),
    )
    first, second = (row for row in result.metrics if row["kind"] == "train")
    assert first["sites"] == "12/12"
    lost = re.findall(r"(site-\d+): its batch was lost on the Dask cluster", json.dumps(second))
    assert "site-5" in lost
    assert len(lost) <= 6
    assert second["sites"] == f"{12 - len(lost)}/12"

    def ends() -> set[str]:
        return {state for name, state in task_runs(result) if "on Dask" in name}

    eventually(lambda: ends() == {"Completed", "Crashed"}, "each batch is shown as done or lost")


def test_a_lost_batch_is_shown_as_lost_in_whichever_order_prefect_hears_of_it() -> None:
    begun: list[State[object]] = [Running(timestamp=datetime.now(UTC)) for _ in range(3)]
    batches = [TaskRun(id=uuid4(), name="b", task_key="b", dynamic_key=str(n)) for n in range(3)]

    @flow(name="job")  # Prefect notes of an event which flow run it is of, as in a real job
    def job() -> None:
        emit_task_run_state_change_event(batches[0], None, begun[0])
        for batch in batches[:2]:
            note_lost(batch.id, "b", "its worker died")
        for batch, state in list(zip(batches, begun, strict=True))[1:]:
            emit_task_run_state_change_event(batch, None, state)

    job()

    def shown() -> dict[str, tuple[str, str]]:
        query = {"task_runs": {"id": {"any_": [str(batch.id) for batch in batches]}}}
        with get_client(sync_client=True) as client:  # it asks again while the database is locked
            found = client.request("POST", "/task_runs/filter", json=query).json()
        return {
            run["id"]: (run["state_name"], run["state"]["message"]) for run in found if run["state"]
        }

    # What is said last of a third batch is shown when all before it has been heard.
    eventually(lambda: str(batches[2].id) in shown(), "Prefect has heard of all three")
    lost = ("Crashed", "its worker died")
    eventually(
        lambda: [shown().get(str(batch.id)) for batch in batches[:2]] == [lost] * 2,
        "both batches are shown as lost",
    )


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"processes": 0}, "at least 1 process, not 0"),
        ({"processes": 2, "runner": "threads"}, "leave it out with --runner threads"),
        ({"dask_address": "tcp://127.0.0.1:9"}, "--dask-address is for --runner dask"),
    ],
)
def test_runners_that_cannot_be_are_refused(where: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        simulate(parameters=job(1), **where)  # type: ignore[arg-type]


def test_without_the_extra_dask_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prefect_dask", None)
    with pytest.raises(ConfigurationError, match=r"Install prefect-federated\[dask\]"):
        simulate(runner="dask", parameters=job(1))


def test_a_loop_runs_on_threads_only() -> None:
    loop: dict[str, JsonValue] = {"executor": "tests.flows.trial_executors:loop", "rounds": 1}
    with pytest.raises(ConfigurationError, match="is a loop, which runs on threads only"):
        simulate(processes=2, parameters=loop)
