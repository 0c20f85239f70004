"""A job's moments: its own functions are told, and Prefect gets events that automations act on."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from prefect_federated import simulate
from prefect_federated.errors import QuorumNotReached
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.tasks import events
from prefect_federated.tasks.events import EVENTS, Hooks
from prefect_federated.tasks.federation import Federation, federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import State, snapshot
from prefect_federated.transport.signals import Moment
from tests.agents.network import eventually
from tests.tasks.in_a_flow import EXECUTOR, run_in_flow

SPEAKING = "tests.transport.speaking_executor"
MODEL = {"slopes": np.zeros(4), "offset": np.zeros(())}

pytestmark = pytest.mark.usefixtures("prefect_api")


def events_of(job: str, count: int) -> list[dict[str, Any]]:
    """Returns a job's events as the server has them, oldest first."""
    wanted = {"resource": {"id": [f"federated.job.{job}"]}, "order": "ASC"}

    def found() -> list[dict[str, Any]]:
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50})
        events: list[dict[str, Any]] = answer.json()["events"]
        return events if len(events) >= count else []

    return eventually(found, f"the server has {count} events of the job")


def test_hooks_are_told_of_each_moment_in_order(tmp_path: Path) -> None:
    told: list[Moment] = []
    hooks = Hooks(**{name: [told.append] for name in EVENTS})

    def controller(fed: Federation) -> None:
        for number in (1, 2):
            list(fed.broadcast("train", MODEL, round=number))
            list(fed.broadcast("evaluate", MODEL, round=number))

    run_in_flow(controller, tmp_path, opening={"hooks": hooks}, sites=["a", "b"])
    a_round = ["round_started", *["update_received"] * 2, "round_completed"]
    names = [moment.name for moment in told if moment.detail.get("kind") != "evaluate"]
    assert names == [*a_round, *a_round, "job_ended"]
    started, *_, ended = told
    assert (started.round, started.detail) == (1, {"kind": "train", "asked": 2})
    assert dict(ended.detail) == {"outcome": "completed", "reason": "all rounds are done"}
    completed = next(moment for moment in told if moment.name == "round_completed")
    assert completed.detail["answered"] == 2
    assert "loss" in str(completed.detail["metrics"])
    assert {moment.site for moment in told if moment.name == "update_received"} == {"a", "b"}


def test_a_round_is_complete_when_the_flow_has_aggregated_it(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    done: list[int] = []
    hooks = Hooks(round_completed=[lambda moment: told.append((moment.name, moment.round))])

    def controller(fed: Federation) -> None:
        for number in (1, 2):
            list(fed.broadcast("train", MODEL, round=number))
            assert len(told) == number - 1  # whatever comes now is the aggregation
            fed.events.aggregated()
            done.append(number)
            eventually(lambda: len(told) == len(done), "the round is complete")
        list(fed.broadcast("train", MODEL, round=3))
        raise ZeroDivisionError("in the aggregation")

    with pytest.raises(ZeroDivisionError):
        run_in_flow(controller, tmp_path, opening={"hooks": hooks})
    assert told == [("round_completed", 1), ("round_completed", 2)]


def test_a_hook_that_raises_is_logged_and_ends_neither_the_job_nor_the_other_hooks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Moment] = []

    def broken(moment: Moment) -> None:
        raise ZeroDivisionError("in a hook")

    def controller(fed: Federation) -> int:
        return len(list(fed.broadcast("train", MODEL, round=1)))

    hooks = Hooks(round_started=[broken, told.append], job_ended=[told.append])
    assert run_in_flow(controller, tmp_path, opening={"hooks": hooks}) == 5
    assert [moment.name for moment in told] == ["round_started", "job_ended"]
    assert "a hook for round_started failed; the job goes on" in caplog.text


def test_a_job_that_fails_says_so_and_its_last_round_is_not_completed(tmp_path: Path) -> None:
    told: list[Moment] = []

    def controller(fed: Federation) -> None:
        list(fed.broadcast("train", MODEL, round=1, quorum=1.0))

    hooks = Hooks(**{name: [told.append] for name in EVENTS})
    with pytest.raises(QuorumNotReached):
        run_in_flow(controller, tmp_path, opening={"hooks": hooks}, config={"raises_at": ["b"]})
    assert "round_completed" not in [moment.name for moment in told]
    assert told[-1].detail["outcome"] == "failed"
    assert "QuorumNotReached: round 1, train: 4 of 5" in str(told[-1].detail["reason"])


def test_a_slow_hook_delays_no_round(tmp_path: Path) -> None:
    def controller(fed: Federation) -> float:
        began = time.monotonic()
        for number in range(1, 6):
            list(fed.broadcast("train", MODEL, round=number))
        return time.monotonic() - began

    slow: list[Callable[[Moment], None]] = [lambda moment: time.sleep(1)]
    assert run_in_flow(controller, tmp_path, opening={"hooks": Hooks(round_started=slow)}) < 4


def test_hooks_are_told_what_sites_say_and_prefect_gets_no_events_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitted: list[str] = []
    monkeypatch.setattr(events, "emit_event", lambda name, **_: emitted.append(name))
    logged: list[Moment] = []
    progressed: list[Moment] = []
    hooks = Hooks(metrics_logged=[logged.append], progressed=[progressed.append])

    def controller(fed: Federation) -> None:
        list(fed.broadcast("train", MODEL, round=1))

    run_in_flow(controller, tmp_path, opening={"hooks": hooks}, sites=["a", "b"], executor=SPEAKING)
    for site in "ab":
        ours = [moment for moment in logged if moment.site == site]
        assert [(moment.round, moment.detail["step"]) for moment in ours] == [
            (1, 1),
            (1, 2),
            (1, 3),
        ]
        assert ours[-1].detail["metrics"] == {"loss": "nan", "round": 1.0}
    assert {moment.site for moment in progressed} == {"a", "b"}
    assert set(emitted) <= set(EVENTS.values())
    assert "federated.update.received" in emitted


def test_notes_for_hooks_that_are_too_slow_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "_SAID_WAITING", 5)
    go_on = threading.Event()
    told: list[Moment] = []

    def slow(moment: Moment) -> None:
        go_on.wait(20)
        told.append(moment)

    def controller(fed: Federation) -> None:
        list(fed.broadcast("train", MODEL, round=1))
        go_on.set()

    hooks = Hooks(metrics_logged=[slow])
    run_in_flow(
        controller,
        tmp_path,
        opening={"hooks": hooks},
        sites=["a"],
        executor=SPEAKING,
        config={"epochs": 100},
    )
    assert 0 < len(told) < 50
    assert f"{100 - len(told)} notes that sites sent while they worked were dropped" in caplog.text


def test_a_jobs_end_does_not_wait_long_for_slow_hooks_of_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_SAID_END_S", 0.1)
    told: list[Moment] = []
    hooks = Hooks(
        metrics_logged=[lambda moment: time.sleep(0.05), told.append], job_ended=[told.append]
    )

    def controller(fed: Federation) -> None:
        list(fed.broadcast("train", MODEL, round=1))

    run_in_flow(
        controller,
        tmp_path,
        opening={"hooks": hooks},
        sites=["a"],
        executor=SPEAKING,
        config={"epochs": 1000},
    )
    assert 0 < len(told) < 200
    assert told[-1].name == "job_ended"


def test_the_moments_are_prefect_events_with_the_flow_run_and_the_site_related() -> None:
    result = simulate(fedavg, sites=2, parameters={"executor": EXECUTOR, "rounds": 1})
    job = result.path.parent.name
    a_round = {"round.started", "update.received", "round.completed", "job.ended"}
    # The initial model, a round of two updates, two evaluations, the end.
    events = events_of(job, count=1 + 1 + 2 + 1 + 2 + 1)
    assert {event["event"] for event in events} == {f"federated.{name}" for name in a_round}
    by_name = {event["event"]: event for event in events}
    completed = by_name["federated.round.completed"]
    assert completed["payload"]["round"] == 1
    assert completed["payload"]["answered"] == 2
    assert "loss" in completed["payload"]["metrics"]
    related = {one["prefect.resource.role"]: one for one in completed["related"]}
    assert related["flow-run"]["prefect.resource.id"] == f"prefect.flow-run.{job}"
    assert related["flow"]["prefect.resource.name"] == "fedavg"
    received = by_name["federated.update.received"]
    (site,) = [one for one in received["related"] if one["prefect.resource.role"] == "site"]
    assert site["prefect.resource.id"] == f"federated.site.{received['payload']['site']}"


def test_the_events_of_a_round_do_not_grow_with_its_sites() -> None:
    first = simulate(fedavg, sites=1, parameters={"executor": EXECUTOR, "rounds": 1})
    result = simulate(
        fedavg,
        sites=40,
        output=first.path.parent.parent,
        parameters={"executor": EXECUTOR, "rounds": 1, "initial_model": str(first.path)},
    )
    events = events_of(result.path.parent.name, count=3)
    # Training and evaluating: 80 updates.
    assert [event["event"] for event in events] == [
        "federated.round.started", "federated.round.completed", "federated.job.ended"
    ]  # fmt: skip


def test_an_automation_of_prefects_acts_on_a_running_job(tmp_path: Path) -> None:
    """A real automation cancels the job's flow run when its second round is completed."""
    trigger = {
        "type": "event",
        "expect": ["federated.round.completed"],
        "match": {"prefect.resource.id": "federated.job.*"},
        "match_related": {
            "prefect.resource.role": "flow", "prefect.resource.name": "cancelled-by-automation"
        },
        "posture": "Reactive",
        "threshold": 2,
        "within": 60,
    }  # fmt: skip
    automation = {
        "name": "stop-after-two-rounds", "trigger": trigger,
        "actions": [{"type": "change-flow-run-state", "state": "CANCELLED", "message": "enough"}],
    }  # fmt: skip
    with get_client(sync_client=True) as client:  # it asks again while the database is locked
        created = client.request("POST", "/automations/", json=automation).json()
    seen: list[StateType | None] = []
    reacted_s: list[float] = []

    @flow(name="cancelled-by-automation")
    @takes(JobParameters)
    def watched(job: JobParameters) -> str:
        with federation(job) as fed, get_client(sync_client=True) as client:
            run_id = fed.hub.job
            list(fed.broadcast("train", MODEL, round=1))
            snapshot(State(MODEL, round=1))
            seen.append(state_of(client, run_id))
            began, number = time.monotonic(), 1
            # Prefect may still have been taking in the automation when the first round ended.
            while state_of(client, run_id) is not StateType.CANCELLED:
                assert time.monotonic() - began < 30, "the automation does not act"
                number += 1
                list(fed.broadcast("train", MODEL, round=number))
                snapshot(State(MODEL, round=number))
            reacted_s.append(time.monotonic() - began)
            return "done"

    try:
        with simulating(Simulation(("a", "b"), 1, tmp_path, tmp_path)):
            watched(executor=EXECUTOR, return_state=True)
    finally:
        with get_client(sync_client=True) as client:
            client.request("DELETE", "/automations/{id}", path_params={"id": created["id"]})
    assert seen == [StateType.RUNNING]
    assert reacted_s[0] < 15, reacted_s


def state_of(client: SyncPrefectClient, run_id: str) -> StateType | None:
    return client.read_flow_run(UUID(run_id)).state_type
