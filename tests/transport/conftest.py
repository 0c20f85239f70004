"""What the tests of the TLS driver share: endpoints, failing lines and sites, closed at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from prefect_federated.executors import TaskFunction
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_server import TlsEndpoint
from tests.agents.network import Federation
from tests.transport.tls_trial import JOB, RunningSite, Wire, halve


@pytest.fixture
def hubs() -> list[Hub]:
    """Returns the hubs of this test."""
    return []


@pytest.fixture
def open_endpoint(kits: Federation, hubs: list[Hub]) -> Iterator[Callable[..., tuple[Hub, int]]]:
    """Opens endpoints of the job, one an attempt; returns the hub and the port."""
    with ExitStack() as stack:

        def open_one(*sites: str, epoch: int = 1) -> tuple[Hub, int]:
            hub = Hub(JOB, epoch, sites or ("site-1", "site-2"))
            endpoint = TlsEndpoint(hub, kits.kit("server-1"))
            stack.enter_context(endpoint)
            hubs.append(hub)
            return hub, int(endpoint.address.rpartition(":")[2])

        yield open_one


@pytest.fixture
def open_wire() -> Iterator[Callable[[int], "Wire"]]:
    """Opens relays to a port of an endpoint, which the test can cut."""
    with ExitStack() as stack:

        def open_one(port: int) -> Wire:
            wire = Wire(port)
            stack.callback(wire.close)
            return wire

        yield open_one


@pytest.fixture
def start_site(
    kits: Federation, hubs: list[Hub], open_endpoint: object, open_wire: object
) -> Iterator[Callable[..., RunningSite]]:
    """Starts sites: name, port, functions by kind of site task."""
    started: list[RunningSite] = []

    def start(name: str, port: int, **functions: TaskFunction) -> RunningSite:
        started.append(RunningSite(kits.kit(name, port), functions or {"train": halve}))
        return started[-1]

    yield start
    for hub in hubs:
        hub.end("completed", "the test is over")
    for site in started:
        site.join()
