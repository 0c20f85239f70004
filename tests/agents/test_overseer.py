"""The overseer against a real Prefect API, with a clock of the test's own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelling, Completed, Crashed, Paused, Pending, Running

from prefect_federated.agents.overseer import CONTROLLER_POOL, Overseer
from prefect_federated.tasks.labels import BEAT, CRASHES, ROUND


@flow(name="some-job")
def some_job() -> None:
    """Stands for a job; it is never run here."""


@flow(name="join")
def join(job: str) -> None:
    """Stands for a site's run; it is never run here."""


class Trial:
    """An overseer whose clock the test moves, and the runs that it finds."""

    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.now = 0.0
        self.overseer = Overseer(client, clock=lambda: self.now)

    async def job(self, state: "State[None]", **labels: int | str) -> UUID:
        with contextlib.suppress(ObjectAlreadyExists):
            await self.client.create_work_pool(WorkPoolCreate(name=CONTROLLER_POOL))
        run = await self.client.create_flow_run(some_job, work_pool_name=CONTROLLER_POOL)
        await self.set(run.id, state, **labels)
        return run.id

    async def site_run(self, job: UUID, state: "State[None]") -> UUID:
        run = await self.client.create_flow_run(join, parameters={"job": str(job)})
        await self.set(run.id, state)
        return run.id

    async def set(self, run: UUID, state: "State[None]", **labels: int | str) -> None:
        await self.client.set_flow_run_state(run, state, force=True)
        if labels:
            await self.client.update_flow_run_labels(
                run, {f"federated.{name}": value for name, value in labels.items()}
            )

    async def look_after(self, seconds: float) -> None:
        self.now += seconds
        await self.overseer.look()

    async def read(self, run: UUID) -> FlowRun:
        return await self.client.read_flow_run(run)

    async def state(self, run: UUID) -> str:
        state = (await self.read(run)).state
        assert state is not None
        return str(state.name)


@pytest.fixture
def trial(prefect_api: str) -> Callable[[Callable[[Trial], Awaitable[None]]], None]:
    """Runs a test's steps with a trial, and afterwards ends the runs that it made."""

    async def with_client(steps: Callable[[Trial], Awaitable[None]]) -> None:
        async with get_client() as client:
            await steps(Trial(client))
            for run in await client.read_flow_runs():
                await client.delete_flow_run(run.id)

    return lambda steps: asyncio.run(with_client(steps))


Steps = Callable[[Callable[[Trial], Awaitable[None]]], None]


def test_a_crashed_job_is_scheduled_again_and_counted(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Crashed(message="kill -9"), round=3, beat="1.7")
        await t.look_after(0)
        run = await t.read(job)
        assert run.state is not None
        assert run.state.name == "AwaitingRetry"
        assert run.state.message == "Taken over in round 3: kill -9"
        assert run.labels[CRASHES] == "3:1"

    trial(steps)


def test_a_takeover_uses_up_no_retry_of_the_flow(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Crashed(), beat="1.1", round=2)
        await t.client.update_flow_run(job, empirical_policy=FlowRunPolicy(retries=2))
        await t.look_after(0)
        assert await t.state(job) == "AwaitingRetry"
        assert (await t.read(job)).empirical_policy.retries == 3

    trial(steps)


def test_a_job_that_crashes_four_times_in_one_round_fails_with_the_reason(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Crashed(message="out of memory"), round=3)
        for _ in range(3):
            await t.look_after(1)
            assert await t.state(job) == "AwaitingRetry"
            await t.set(job, Crashed(message="out of memory"))
        await t.look_after(1)
        run = await t.read(job)
        assert run.state is not None
        assert run.state.is_failed()
        assert run.state.message == (
            "The job crashed 4 times in round 3; the last time: out of memory"
        )

    trial(steps)


def test_a_label_that_lags_behind_the_round_is_no_progress(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Crashed(message="x"), round=0, crashes="3:2")
        await t.look_after(0)
        assert (await t.read(job)).labels[CRASHES] == "3:3"

    trial(steps)


def test_crashes_in_another_round_count_anew(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Crashed(message="x"), round=4, crashes="3:3")
        await t.look_after(0)
        assert (await t.read(job)).labels[CRASHES] == "4:1"
        assert await t.state(job) == "AwaitingRetry"

    trial(steps)


def test_a_running_job_that_is_silent_for_six_seconds_is_taken_over(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Running(), beat="1.1", round=2)
        await t.look_after(0)
        await t.look_after(5.9)
        assert await t.state(job) == "Running"
        await t.client.update_flow_run_labels(job, {BEAT: "1.2"})
        await t.look_after(5.9)
        await t.look_after(5.9)
        assert await t.state(job) == "Running"
        await t.look_after(0.2)
        assert await t.state(job) == "AwaitingRetry"

    trial(steps)


def test_silence_does_not_count_while_the_api_keeps_the_overseer_waiting(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Running(), beat="1.1", round=2)
        await t.look_after(0)
        read = t.client.read_flow_runs

        async def read_slowly(*arguments: Any, **named: Any) -> list[FlowRun]:
            t.now += 100
            return await read(*arguments, **named)

        t.client.read_flow_runs = read_slowly  # type: ignore[method-assign]
        await t.look_after(1)
        assert await t.state(job) == "Running"
        t.client.read_flow_runs = read  # type: ignore[method-assign]
        await t.look_after(5.1)
        assert await t.state(job) == "AwaitingRetry"

    trial(steps)


def test_a_running_job_that_has_not_opened_its_federation_is_left_alone(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        without = await t.job(Running())
        closed = await t.job(Running(), beat="")
        await t.look_after(0)
        await t.look_after(1000)
        assert await t.state(without) == "Running"
        assert await t.state(closed) == "Running"

    trial(steps)


def test_a_job_that_was_taken_but_never_started_is_scheduled_again(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Pending())
        await t.look_after(0)
        await t.look_after(61)
        assert await t.state(job) == "AwaitingRetry"

    trial(steps)


def test_a_cancelled_job_whose_controller_is_gone_ends_cancelled(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Cancelling(), beat="1.5")
        await t.look_after(0)
        await t.look_after(11)
        assert await t.state(job) == "Cancelling"
        await t.look_after(2)
        assert await t.state(job) == "Cancelled"

    trial(steps)


def test_site_runs_of_ended_jobs_are_cancelled_and_others_left(trial: Steps) -> None:
    async def steps(t: Trial) -> None:
        ended, going_on = await t.job(Completed()), await t.job(Running())
        orphan, other = (
            await t.site_run(ended, Running()),
            await t.site_run(going_on, Running()),
        )
        await t.look_after(0)
        await t.look_after(9)
        assert await t.state(orphan) == "Running"
        await t.look_after(2)
        assert await t.state(orphan) == "Cancelling"
        assert await t.state(other) == "Running"

    trial(steps)


def test_labels_are_those_that_the_controller_writes() -> None:
    assert (BEAT, ROUND, CRASHES) == ("federated.beat", "federated.round", "federated.crashes")


def test_a_paused_job_is_left_alone_while_it_beats_and_taken_over_when_it_is_silent(
    trial: Steps,
) -> None:
    async def steps(t: Trial) -> None:
        job = await t.job(Paused(timeout_seconds=3600), beat="1.1")
        suspended = await t.job(Paused(timeout_seconds=3600, reschedule=True), beat="")
        await t.look_after(0)
        for beat in range(2, 8):
            await t.set(job, Paused(timeout_seconds=3600), beat=f"1.{beat}")
            await t.look_after(5)
            assert await t.state(job) == "Paused"
        await t.look_after(7)
        assert await t.state(job) == "AwaitingRetry"
        assert await t.state(suspended) == "Paused"

    trial(steps)
