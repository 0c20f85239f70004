"""The simulator's federation: virtual sites in this process, set up by `agents.simulator`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefect.runtime import flow_run

from prefect_federated.errors import ConfigurationError, NotEnoughSites
from prefect_federated.executors import load_executor
from prefect_federated.tasks.dask_runner import DaskRunner
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.transport.batches import LocalSites, Runner, ThreadRunner, VirtualSites
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import InprocEndpoint, Labels, Watcher
from prefect_federated.transport.loops import LoopEndpoint
from prefect_federated.transport.process_runner import ProcessRunner
from prefect_federated.transport.signals import Moment


@dataclass(frozen=True)
class Simulation:
    """What a simulated federation consists of.

    Args:
        sites: Names of the virtual sites.
        threads: Site tasks that run at the same time, with the runner "threads".
        data: Folder with one sub-folder of data a site.
        state: Folder for what sites keep during the job.
        runner: Where site tasks run: on threads of this process, in worker processes, or on a Dask
            cluster.
        processes: Worker processes, of this machine or of a Dask cluster made for the job.
        dask_address: A Dask scheduler's address; a cluster on this machine if None.
        labels: Labels of sites, by site.
        watcher: Makes what is told of the sites' progress, of the job's rounds.
        listener: Is told of the hub's moments; must not block.
        tensorboard: Folder for TensorBoard's event files; what the settings say if None.
    """

    sites: tuple[str, ...]
    threads: int
    data: Path
    state: Path
    runner: Literal["threads", "processes", "dask"] = "threads"
    processes: int | None = None
    dask_address: str | None = None
    labels: Labels = field(default_factory=dict)
    watcher: Callable[[int | None], Watcher] | None = None
    listener: Callable[[Moment], None] | None = None
    tensorboard: Path | None = None


_simulation: ContextVar[Simulation | None] = ContextVar("simulation", default=None)


def current_simulation() -> Simulation | None:
    """Returns the simulation in which flows run now, or None for a real federation."""
    return _simulation.get()


@contextmanager
def simulating(simulation: Simulation) -> Iterator[None]:
    """Makes flows that run inside the block run on virtual sites."""
    token = _simulation.set(simulation)
    try:
        yield
    finally:
        _simulation.reset(token)


@contextmanager
def simulated(job: JobParameters, simulation: Simulation) -> Iterator[Hub]:
    """Opens a simulated federation for a job.

    Raises:
        ConfigurationError: the job names a site that the simulation does not have.
        NotEnoughSites: the job asks for more sites than there are, or than joined in time.
        ExecutorNotFound: the executor does not import.
    """
    known = set(simulation.sites)
    names = tuple(dict.fromkeys(job.sites or simulation.sites))
    unknown = sorted(set(names) - known)
    if unknown:
        raise ConfigurationError(
            f"the job names the sites {_few(unknown)}; the simulation has {_few(simulation.sites)}."
        )
    if (job.min_sites or 1) > len(names):
        raise NotEnoughSites(
            f"the job asks for {job.min_sites} sites; the simulation has {len(names)}. "
            "Raise --sites or lower min_sites."
        )
    job_id = str(flow_run.id or "simulated")
    sites = VirtualSites(
        executor=job.executor,
        data=simulation.data,
        state=simulation.state / job_id,
        config=dict(job.config),
        seed=job.seed,
        filters=[spec.to_json() for spec in job.filters],
    )
    hub = Hub(
        job_id,
        epoch=1,
        sites=names,
        max_failures=job.max_failures,
        updates_in_memory=job.updates_in_memory,
    )
    if simulation.listener is not None:
        hub.listeners.append(simulation.listener)
    with _endpoint(hub, sites, simulation, getattr(job, "rounds", None)):
        try:
            _wait_for_sites(job, hub)
            yield hub
        except BaseException as error:
            hub.end("failed", str(error))
            raise
        hub.end("completed", "all rounds are done")


def _endpoint(
    hub: Hub, sites: VirtualSites, simulation: Simulation, rounds: int | None
) -> InprocEndpoint | LoopEndpoint:
    executor = load_executor(sites.executor)
    watcher = simulation.watcher(rounds) if simulation.watcher is not None else None
    if executor.loop is not None:
        if simulation.runner != "threads":
            raise ConfigurationError(
                f"executor {sites.executor!r} is a loop, which runs on threads only. Leave out "
                f"--processes and --runner {simulation.runner}, or write it as a function "
                "`train(model, site)`."
            )
        return LoopEndpoint(hub, sites, executor, simulation.threads, simulation.labels, watcher)
    runner: Runner
    if simulation.runner == "dask":
        runner = DaskRunner(sites, simulation.dask_address, simulation.processes)
    elif simulation.runner == "processes":
        runner = ProcessRunner(sites, simulation.processes or simulation.threads)
    else:
        runner = ThreadRunner(LocalSites(sites, executor), simulation.threads)
    return InprocEndpoint(hub, tuple(executor.functions), runner, simulation.labels, watcher)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{list(names[:10])}{more}"


def _wait_for_sites(job: JobParameters, hub: Hub) -> None:
    """Waits until enough sites are attached: executors in the loop form take their time."""
    needed = job.min_sites or len(hub.sites)
    deadline = hub.clock() + job.join_timeout_s
    with hub.changed:
        while (joined := len(hub.attached())) < needed:
            lost = {site: reason for site in hub.sites if (reason := hub.given_up(site))}
            left = deadline - hub.clock()
            if left <= 0 or len(hub.sites) - len(lost) < needed:
                reasons = "; ".join(f"{site}: {reason}" for site, reason in lost.items())
                waited = f" within {job.join_timeout_s:g} s" if left <= 0 else ""
                raise NotEnoughSites(
                    f"{joined} of the {needed} sites that the job needs called `site_tasks()`"
                    f"{waited}. {reasons or 'No loop has failed'}."
                )
            hub.changed.wait(left)
