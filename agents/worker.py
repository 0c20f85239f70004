"""The two Prefect workers of a federation: a site's, and the server's, which runs controllers.

Both report a crash once (Prefect's own process worker does it twice, and the second report would
overwrite a restart), and neither gives up when the API is away for a while.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
import psutil
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import Flow, FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)

from prefect_federated.agents import fork_server, fork_stub
from prefect_federated.agents.processes import PARENT, Child

Result = TypeVar("Result")

_BACKOFF_S = (1.0, 2.0, 3.0, 5.0)

log = logging.getLogger("prefect_federated.worker")


FORK_SOCKET = "PREFECT_FEDERATED_FORK_SOCKET"


@contextlib.asynccontextmanager
async def warm_starts() -> AsyncIterator[None]:
    """Keeps a fork server beside the worker that runs in the block; see `fork_server`."""
    # Not in the agent's own folder for temporary files: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="fed-", dir="/tmp") as folder:
        os.environ[FORK_SOCKET] = f"{folder}/fork"
        command = [sys.executable, "-m", fork_server.__name__, os.environ[FORK_SOCKET]]
        child = asyncio.create_task(Child("fork server", command, os.environ).run())
        try:
            yield
        finally:
            del os.environ[FORK_SOCKET]
            child.cancel()
            await asyncio.gather(child, return_exceptions=True)


def start_command(module: str) -> str:
    """Returns the command that runs a module as a run's process, warm where that is possible."""
    path = os.environ.get(FORK_SOCKET)
    if path is None:
        return shlex.join([sys.executable, "-m", module])
    return shlex.join([sys.executable, "-I", "-S", fork_stub.__file__, path, module])


class _PatientWorker(ProcessWorker):
    """A process worker that reports a crash once and waits for an API that is away."""

    type = "federated-base"
    _failures = 0

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Runs a flow run's process to its end; a crash has been reported when this returns."""
        result = await super().run(flow_run, configuration, task_status)
        return ProcessWorkerResult(status_code=0, identifier=result.identifier)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Polls for flow runs; an API that is away is waited for."""
        found = await self._patiently(super().get_and_submit_flow_runs)
        return found or []

    async def sync_with_backend(self) -> None:
        """Sends the worker's heartbeat; an API that is away is waited for."""
        await self._patiently(super().sync_with_backend)

    async def _patiently(self, work: Callable[[], Awaitable[Result]]) -> Result | None:
        try:
            result = await work()
        except (httpx.TransportError, httpx.HTTPStatusError, PrefectHTTPStatusError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            self._failures += 1
            if self._failures == 2:
                log.warning("the server does not answer (%s); waiting for it", error)
            await anyio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1])
            return None
        if self._failures >= 2:
            log.info("the server answers again")
        self._failures = 0
        return result


class ControllerConfiguration(ProcessJobConfiguration):
    """How the server runs a job: warm, unless its deployment has a command or steps of its own."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Chooses the command."""
        super().prepare_for_flow_run(
            flow_run, deployment, flow, work_pool, worker_name, worker_id=worker_id
        )
        self.env[PARENT] = str(os.getpid())
        if not self._command_configured and not (deployment and deployment.pull_steps):
            self.command = start_command("prefect.engine")
            self._command_configured = True


class ControllerWorker(_PatientWorker):
    """The server's worker, on the pool `federation`: one process a job, the controller."""

    type = "federated-controller"
    job_configuration = ControllerConfiguration
    _display_name = "Federated controller"
    _description = "Runs the controllers of federated jobs, on the federation's server."


class SiteConfiguration(ProcessJobConfiguration):
    """How a site runs a job: its own command in its own environment, whatever the server says."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Drops command, environment and folder that came with the run, and sets the site's."""
        self.env, self.command, self.working_dir = {}, None, None
        super().prepare_for_flow_run(
            flow_run, deployment, flow, work_pool, worker_name, worker_id=worker_id
        )
        self.env[PARENT] = str(os.getpid())
        self.command = start_command("prefect_federated.agents.site_process")
        self._command_configured = True


class FederatedSiteWorker(_PatientWorker):
    """A site's worker: one process a job, which runs the site's own flow and nothing else.

    Commands, environment variables, folders, pull steps and entrypoints that come with a flow run
    are not used: in Prefect they are code execution by whoever can create a flow run.
    """

    type = "federated-site"
    job_configuration = SiteConfiguration
    _display_name = "Federated site"
    _description = "Runs a site's part of federated jobs, where the site's data is."

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Returns a template without variables: nothing at a site is set from outside."""
        return {
            "job_configuration": {"stream_output": True},
            "variables": {"type": "object", "properties": {}},
        }

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._attended: set[UUID] = set()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Runs a flow run's process to its end."""
        self._attended.add(flow_run.id)
        try:
            return await super().run(flow_run, configuration, task_status)
        finally:
            self._attended.discard(flow_run.id)

    async def sync_with_backend(self) -> None:
        """Sends the worker's heartbeat, and reports processes that ended unheard."""
        await super().sync_with_backend()
        if self._has_successfully_synced:
            await self._patiently(self._report_orphans)

    async def _report_orphans(self) -> None:
        """Reports runs of this site whose processes are gone and that nobody attends to any more.

        They are those of an earlier worker, and those that ended while the server was away for
        longer than Prefect tries to tell it.
        """
        attended = self._attended | self._submitting_flow_run_ids
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name]))
        types = FlowRunFilterStateType(
            any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
        )
        runs = await self.client.read_flow_runs(
            work_pool_filter=pool,
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=types)),
        )
        attended |= self._attended | self._submitting_flow_run_ids
        for run in runs:
            if run.id in attended or is_alive_here(run):
                continue
            message = "The process is gone, and nobody has told how it ended."
            log.warning("flow run %s: %s", run.name, message)
            state = Cancelled if run.state and run.state.is_cancelling() else Crashed
            with contextlib.suppress(ObjectNotFound):  # somebody has deleted it
                await self.client.set_flow_run_state(run.id, state(message=message), force=True)


def is_alive_here(run: FlowRun) -> bool:
    """Whether the run's process still runs on this machine."""
    pid = (run.infrastructure_pid or "").rpartition(":")[2]
    if not pid.isdigit():
        return False
    try:
        environment = psutil.Process(int(pid)).environ()
    except psutil.Error:
        return False
    return environment.get("PREFECT__FLOW_RUN_ID") == str(run.id) and int(pid) != os.getpid()
