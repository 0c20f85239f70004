"""The simulator's federation: virtual sites in this process, set up by `agents.simulator`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from prefect.runtime import flow_run

from prefect_federated.errors import ConfigurationError, NotEnoughSites
from prefect_federated.executors import Site, load_executor, site_seed
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import InprocEndpoint


@dataclass(frozen=True)
class Simulation:
    """What a simulated federation consists of.

    Args:
        sites: Names of the virtual sites.
        threads: Site tasks that run at the same time.
        data: Folder with one sub-folder of data a site.
        state: Folder for what sites keep during the job.
    """

    sites: tuple[str, ...]
    threads: int
    data: Path
    state: Path


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
    names = tuple(dict.fromkeys(job.sites or simulation.sites))
    unknown = sorted(set(names) - set(simulation.sites))
    if unknown:
        raise ConfigurationError(
            f"the job names the sites {unknown}; the simulation has {list(simulation.sites)}."
        )
    if (job.min_sites or 1) > len(names):
        raise NotEnoughSites(
            f"the job asks for {job.min_sites} sites; the simulation has {len(names)}. "
            "Raise --sites or lower min_sites."
        )
    job_id = str(flow_run.id or "simulated")
    sites = {
        name: Site(
            name=name,
            data=simulation.data / name,
            state=simulation.state / job_id / name,
            config=dict(job.config),
            seed=site_seed(job.seed, name),
            log=logging.getLogger(f"prefect_federated.site.{name}"),
        )
        for name in names
    }
    for site in sites.values():
        site.state.mkdir(parents=True, exist_ok=True)
    hub = Hub(job_id, epoch=1, sites=names)
    with InprocEndpoint(hub, sites, load_executor(job.executor), simulation.threads):
        try:
            _wait_for_sites(job, hub)
            yield hub
        except BaseException as error:
            hub.end("failed", str(error))
            raise
        hub.end("completed", "all rounds are done")


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
