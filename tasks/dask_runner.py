"""Batches of site tasks on a Dask cluster, each one Prefect task run, through prefect-dask.

What travels is our wire format as bytes. A worker that dies takes its batch with it: Dask gives the
batch to another worker a few times; after that its sites count as failed, and the round goes on.
"""

import asyncio
import contextvars
import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Crashed
from prefect.utilities.engine import emit_task_run_state_change_event

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Message
from prefect_federated.transport.batches import (
    Answer,
    Batch,
    BatchLost,
    Told,
    VirtualSites,
    is_said,
    packed,
    run_packed,
    unpacked,
)

if TYPE_CHECKING:
    from distributed import LocalCluster
    from prefect_dask.task_runners import DaskTaskRunner

_WORKERS = 2
_CONNECT_S = 10

log = logging.getLogger("prefect_federated.simulator")


def check_dask() -> None:
    """Raises `ConfigurationError` if what `--runner dask` needs is not installed."""
    try:
        import prefect_dask  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "--runner dask needs prefect-dask and distributed, which are not installed "
            f"({error}). Install prefect-federated[dask]."
        ) from error


@task(name="batch", cache_policy=NO_CACHE, persist_result=False)
def run_batch(request: bytes, path: list[str]) -> bytes:
    """Runs a batch of site tasks on a Dask worker; returns the sites' answers."""
    for folder in path:
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.append(folder)
    return run_packed(request)


class DaskRunner:
    """Runs batches on a Dask cluster. Make it inside the flow whose Prefect task runs they are.

    Args:
        sites: The virtual sites. The folders of their data and state must be the same for all
            workers, so on several machines they are on storage that all of them see.
        address: The scheduler's address, `tcp://host:port`; a cluster of worker processes on this
            machine, for the length of the job, if None.
        workers: Worker processes of that cluster.

    Raises:
        ConfigurationError: prefect-dask is not installed, or the cluster has no workers.
    """

    def __init__(
        self, sites: VirtualSites, address: str | None = None, workers: int | None = None
    ) -> None:
        check_dask()
        self.batches_a_lane: int | None = 2
        self._about = Message({"sites": sites.as_json()})
        self._path = [str(Path(entry).absolute()) for entry in sys.path if entry]
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._is_closed = False
        self._runner = _connect(address, workers or _WORKERS)
        threads: dict[str, int] = self._runner.client.nthreads()  # type: ignore[no-untyped-call]
        self.lanes = sum(threads.values())
        if self.lanes == 0:
            self.close()
            raise ConfigurationError(
                f"the Dask scheduler at {address} has no workers; start `dask worker {address}`."
            )

    def run(self, lane: int, batch: Batch, answer: Answer, told: Told) -> None:
        """Runs a batch on whichever worker is free; what its sites say comes with the answers."""
        parameters = {"request": packed([self._about, batch.message()]), "path": self._path}
        name = f"{batch.task.header.get('kind')} · batch of {len(batch.sites)} on Dask"
        named = run_batch.with_options(task_run_name=name)
        future = self._context.copy().run(self._runner.submit, named, parameters)
        try:
            content: bytes = future.result()
        except (Exception, asyncio.CancelledError) as error:  # from Dask, Prefect, a worker's end
            reason = f"its batch was lost on the Dask cluster: {_why(error)}"
            if self._is_closed:
                reason = "the job has ended"
            self._context.copy().run(note_lost, future.task_run_id, name, reason)
            raise BatchLost(reason) from error
        answers = (message for message in unpacked(content) if not is_said(message, told))
        for site, message in zip(batch.sites, answers, strict=True):
            answer(site, message)

    def close(self) -> None:
        """Leaves the cluster; ends it if it was made for this job."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._runner.__exit__(None, None, None)


def _why(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "the worker that ran it died, and so did any that it was given to after it"
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def note_lost(task_run: UUID, name: str, reason: str) -> None:
    """Shows in Prefect that a batch is lost: the worker that would have said so is gone.

    It is said as the worker would have, by an event, since that is right in any order: what the
    worker said before, and what Prefect's server gets to only after this, is older and stays so;
    and Prefect need not have heard of the task run.

    Args:
        task_run: The batch's Prefect task run.
        name: Its name.
        reason: Why nobody will answer for the batch.
    """
    flow = FlowRunContext.get()
    state: State[object] = Crashed(message=reason)
    lost = TaskRun(
        id=task_run,
        name=name,
        flow_run_id=None if flow is None or flow.flow_run is None else flow.flow_run.id,
        task_key=run_batch.task_key,
        dynamic_key=str(uuid4()),
        end_time=state.timestamp,
    )
    emit_task_run_state_change_event(lost, None, state)


def _connect(address: str | None, workers: int) -> "DaskTaskRunner":
    from prefect_dask.task_runners import DaskTaskRunner

    logging.getLogger("distributed").setLevel(logging.WARNING)
    if address is None:
        made_by = f"{__name__}.{local_cluster.__name__}"
        runner = DaskTaskRunner(cluster_class=made_by, cluster_kwargs={"workers": workers})
    else:
        runner = DaskTaskRunner(address=address, client_kwargs={"timeout": _CONNECT_S})
    runner.__enter__()  # type: ignore[no-untyped-call]
    try:
        _ = runner.client  # made on first use
    except (OSError, TimeoutError) as error:
        runner.__exit__(None, None, None)
        raise ConfigurationError(
            f"no Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, "
            "or leave --dask-address out for a cluster on this machine."
        ) from error
    return runner


def local_cluster(workers: int) -> "LocalCluster":
    """Returns a cluster of worker processes on this machine, which nobody else can use."""
    import dask
    from distributed import LocalCluster

    logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)
    quiet = {
        "distributed.nanny.pre-spawn-environ": {
            **dask.config.get("distributed.nanny.pre-spawn-environ"),
            "DASK_LOGGING__DISTRIBUTED": "warning",
        },
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    with dask.config.set(quiet):
        return LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            protocol="tls",
            security=True,  # with certificates of its own
            silence_logs=logging.WARNING,
        )
