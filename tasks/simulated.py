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
        NotEnoughSites: the job asks for more sites than there are.
        ExecutorNotFound: the executor does not import.
    """
    names = tuple(job.sites or simulation.sites)
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
    sites = {
        name: Site(
            name=name,
            data=simulation.data / name,
            state=simulation.state / name,
            config=dict(job.config),
            seed=site_seed(job.seed, name),
            log=logging.getLogger(f"prefect_federated.site.{name}"),
        )
        for name in names
    }
    for site in sites.values():
        site.state.mkdir(parents=True, exist_ok=True)
    hub = Hub(str(flow_run.id or "simulated"), epoch=1, sites=names)
    with InprocEndpoint(hub, sites, load_executor(job.executor), simulation.threads):
        try:
            yield hub
        except BaseException as error:
            hub.end("failed", str(error))
            raise
        hub.end("completed", "all rounds are done")
