"""Failover: looks again and again at every job that should be running, and mends what is not so.

A level-triggered reconciler. It needs no event to arrive: whatever state it finds, it moves each
job one step towards what should be, with its own clock. It never decides who is right between two
attempts of a job: epochs do that (`tasks.deployed`).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Failed

from prefect_federated.agents.worker import is_alive_here
from prefect_federated.tasks.labels import BEAT, CRASHES, ROUND
from prefect_federated.tasks.paging import in_pages, read_all_async
from prefect_federated.tasks.site_runs import SITE_FLOW

CONTROLLER_POOL = "federation"

_LOOK_EVERY_S = 1.0
_SILENCE_S = 6.0  # a running controller that has beaten before and is silent for so long is dead,
_SILENCE_ALIVE_S = 30.0  # unless its process is seen to live on this machine: then it hangs
_PENDING_S = 60.0  # a run that a worker took and never started
_LAST_WORD_S = 10.0  # for sites to hear from their controller that the job is over
_CRASHES_A_ROUND = 3

log = logging.getLogger("prefect_federated.overseer")


@dataclass
class _Seen:
    """What the overseer saw of a run, and since when it has been so (its own clock)."""

    what: str
    since: float


class Overseer:
    """Watches the controllers' runs, and the sites' runs of jobs that are over.

    Args:
        client: Prefect's client.
        clock: Monotonic seconds.
    """

    def __init__(self, client: PrefectClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._seen: dict[UUID, _Seen] = {}

    async def run(self) -> None:
        """Looks once a second, until it is cancelled."""
        # Prefect's client sleeps up to half a minute between its own attempts.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}):
            while True:
                try:
                    await self.look()
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                    log.warning("the API does not answer (%s); nobody is judged meanwhile", error)
                    self._seen.clear()  # silence that could not be heard is no silence
                await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Looks at every job once and mends what it can."""
        unfinished = [
            StateType.RUNNING, StateType.PAUSED, StateType.PENDING, StateType.CRASHED,
            StateType.CANCELLING,
        ]  # fmt: skip
        began = self._clock()
        jobs = await read_all_async(
            self._client.read_flow_runs,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[CONTROLLER_POOL])),
            flow_run_filter=_in_states(unfinished),
        )
        deaf_s = self._clock() - began  # the controllers' beats had to wait for the API, too
        for seen in self._seen.values():
            seen.since += deaf_s
        self._seen = {
            run_id: seen
            for run_id, seen in self._seen.items()
            if run_id in {job.id for job in jobs} or seen.what == "over"
        }
        for job in jobs:
            await self._mend(job)
        await self._end_sites_of_ended_jobs()

    async def _mend(self, job: FlowRun) -> None:
        assert job.state is not None
        if job.state.is_crashed():
            await self._restart(job, job.state.message or "its process ended")
            return
        beat = str(job.labels.get(BEAT, ""))
        unchanged_s = self._unchanged_s(job.id, f"{job.state.type} {beat}")
        patience_s = _SILENCE_ALIVE_S if is_alive_here(job) else _SILENCE_S
        # A job that waits for a person beats, too; one that is suspended has said its last beat.
        is_at_work = job.state.is_running() or job.state.is_paused()
        if is_at_work and beat and unchanged_s > patience_s:
            await self._restart(job, f"its controller has been silent for {unchanged_s:.0f} s")
        elif job.state.is_pending() and unchanged_s > _PENDING_S:
            await self._restart(job, f"it was not started within {unchanged_s:.0f} s")
        elif job.state.is_cancelling() and unchanged_s > 2 * _SILENCE_S:
            message = "The job was cancelled, and its controller is gone."
            await self._client.set_flow_run_state(job.id, Cancelled(message=message), force=True)

    def _unchanged_s(self, run_id: UUID, what: str) -> float:
        seen = self._seen.get(run_id)
        if seen is None or seen.what != what:
            self._seen[run_id] = _Seen(what, self._clock())
            return 0.0
        return self._clock() - seen.since

    async def _restart(self, job: FlowRun, reason: str) -> None:
        """Schedules a job again; gives it up when it keeps crashing in the same round."""
        number = int(job.labels.get(ROUND) or 0)
        furthest, _, count = str(job.labels.get(CRASHES, "")).partition(":")
        crashes = 1
        # The label may lag behind, and a new attempt begins at 0: only a later round is progress.
        if furthest.isdigit() and count.isdigit() and number <= int(furthest):
            number, crashes = int(furthest), int(count) + 1
        if crashes > _CRASHES_A_ROUND:
            message = f"The job crashed {crashes} times in round {number}; the last time: {reason}"
            log.error("job %s given up: %s", job.name, message)
            await self._client.set_flow_run_state(job.id, Failed(message=message), force=True)
            return
        await self._client.update_flow_run_labels(job.id, {CRASHES: f"{number}:{crashes}"})
        policy = job.empirical_policy
        if policy.retries:  # Prefect counts this attempt as one of them, and it is none
            policy = policy.model_copy(update={"retries": policy.retries + 1})
            await self._client.update_flow_run(job.id, empirical_policy=policy)
        message = f"Taken over in round {number}: {reason}"
        log.warning("job %s: %s", job.name, message)
        await self._client.set_flow_run_state(job.id, AwaitingRetry(message=message), force=True)
        self._seen.pop(job.id, None)

    async def _end_sites_of_ended_jobs(self) -> None:
        """Cancels what sites still run for jobs that are over, should they not have heard."""
        waiting = [StateType.SCHEDULED, StateType.PENDING]
        runs = await read_all_async(
            self._client.read_flow_runs,
            flow_filter=FlowFilter(name=FlowFilterName(any_=[SITE_FLOW])),
            flow_run_filter=_in_states([StateType.RUNNING, *waiting]),
        )
        jobs = {str(run.parameters.get("job")) for run in runs}
        ended = {str(job.id) for job in await self._read(jobs) if _is_over(job)}
        for run in runs:
            if str(run.parameters.get("job")) not in ended:
                continue
            assert run.state is not None
            if self._unchanged_s(run.id, "over") > _LAST_WORD_S:
                state = Cancelled if run.state.type in waiting else Cancelling
                log.warning("%s: its job is over; cancelling it", run.name)
                message = "The job is over."
                await self._client.set_flow_run_state(run.id, state(message=message), force=True)

    async def _read(self, ids: set[str]) -> list[FlowRun]:
        valid = [UUID(run_id) for run_id in ids if _is_uuid(run_id)]
        return [
            run
            for some in in_pages(valid)
            for run in await read_all_async(
                self._client.read_flow_runs,
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(some))),
            )
        ]


def _in_states(types: list[StateType]) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))


def _is_over(job: FlowRun) -> bool:
    """Whether a job has ended for good; a crashed one comes back."""
    return job.state is not None and job.state.is_final() and not job.state.is_crashed()


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
