"""Prefect's own automations, pauses and inputs, on jobs of a running federation."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CancelFlowRun
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.states import Cancelling

from prefect_federated.tasks.labels import BEAT, EPOCH
from tests.integration.running import Job, Running, eventually


@pytest.fixture(autouse=True)
def no_job_is_left(federation: Running) -> Iterator[None]:
    """Cancels what a test has left, so that the next one finds an idle federation."""
    yield
    running = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
    left = federation.client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=["federation"])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=running))
        ),
    )
    for run in left:
        federation.client.set_flow_run_state(run.id, Cancelling(), force=True)
    federation.wait_until_idle()


@contextmanager
def automation(federation: Running, **trigger: Any) -> Iterator[None]:
    """Has Prefect cancel a job's flow run when an event comes."""
    wanted = AutomationCore(
        name="cancel a job",
        trigger=EventTrigger(posture="Reactive", threshold=1, **trigger),
        actions=[CancelFlowRun()],
    )
    created = federation.client.create_automation(wanted)
    try:
        yield
    finally:
        federation.client.delete_automation(created)


def test_an_automation_cancels_a_job_when_it_loses_a_site(federation: Running) -> None:
    job = federation.submit(rounds=3, script={"2": "wait at the gate"})
    with automation(
        federation,
        expect={"federated.site.lost"},
        match={"prefect.resource.id": f"federated.job.{job.run_id}"},
        match_related={"prefect.resource.id": "federated.site.site-2"},
    ):
        calls = {call.site: call for call in job.wait_for_round(2)}
        kill(federation, calls["site-2"].pid)
        assert job.wait(within_s=30).state_type == StateType.CANCELLED
    federation.wait_until_idle()

    def cancelled() -> bool:
        runs = job.site_runs()
        return {runs[site].state_type for site in ("site-1", "site-3")} == {StateType.CANCELLED}

    eventually(cancelled, "the runs of the sites that live are cancelled", within_s=30)


def kill(federation: Running, pid: int) -> None:
    next(process for process in federation.forks() if process.pid == pid).kill()


def paused(job: Job) -> str:
    """Waits until the job waits for a person; returns its beat then."""

    def beat() -> str | None:
        run = job.run
        return str(run.labels.get(BEAT, "")) if run.state_type == StateType.PAUSED else None

    return eventually(beat, "the job is paused, and beats", within_s=60)


def test_a_job_waits_for_a_person_between_rounds_and_goes_on_when_told(
    federation: Running,
) -> None:
    job = federation.submit(rounds=3, pause_after=[1])
    beat = paused(job)
    eventually(
        lambda: later(str(job.run.labels[BEAT]), beat) >= 4, "the paused controller beats on"
    )
    assert job.run.state_type == StateType.PAUSED
    assert {run.state_type for run in job.site_runs().values()} == {StateType.RUNNING}
    assert job.calls(2) == []
    federation.client.resume_flow_run(job.run_id, {"go_on": True, "note": "looks good"})
    job.wait()
    assert job.run.labels[EPOCH] == 1  # the same process goes on
    job.check_counted_once()
    said = "a person lets it go on: looks good"
    eventually(lambda: said in federation.text_of_logs(job.run_id), "its log has arrived")
    job.wait_for_site_runs(StateType.COMPLETED)


def later(beat: str, than: str) -> int:
    """Returns how many beats lie between two; an attempt's beats are numbered from 1."""
    (attempt, number), (earlier, start) = beat.split("."), than.split(".")
    assert attempt == earlier, f"the job was taken over: {than} -> {beat}"
    return int(number) - int(start)


def test_a_person_may_end_a_job_after_a_round_and_its_model_is_published(
    federation: Running,
) -> None:
    job = federation.submit(rounds=5, pause_after=[2])
    paused(job)
    federation.client.resume_flow_run(job.run_id, {"go_on": False})
    job.wait()
    assert job.reference().round == 2
    assert (job.counted()[:2].sum(axis=1) > 0.99).all()
    assert not job.counted()[2:].any()
    wanted = {"resource": {"id": [f"federated.job.{job.run_id}"]}}

    def told() -> bool:
        answer = federation.client.request(
            "POST", "/events/filter", json={"filter": wanted, "limit": 50}
        )
        events = [event["event"] for event in answer.raise_for_status().json()["events"]]
        return events.count("federated.round.completed") == 2 and "federated.job.ended" in events

    eventually(told, "the job's last event arrives, though its process ends", within_s=20)


def test_a_paused_job_whose_controller_dies_asks_again_and_a_paused_job_can_be_cancelled(
    federation: Running,
) -> None:
    job = federation.submit(rounds=3, pause_after=[1])
    paused(job)
    job.kill_controller()
    eventually(lambda: job.run.labels[EPOCH] == 2, "the job is taken over")
    paused(job)
    assert len(job.calls(1)) == len(job.sites)  # round 1 was not done again
    cancel = federation.command("flow-run", "cancel", str(job.run_id))
    subprocess.run(cancel, check=True, capture_output=True, timeout=60)
    assert job.wait(within_s=30).state_type == StateType.CANCELLED
    job.wait_for_site_runs(StateType.CANCELLED)
    federation.wait_until_idle()
