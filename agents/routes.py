"""Where a TLS name leads: to a job's endpoint, or to the API.

A job's controller publishes its endpoint as the label `federated.endpoint` on its own flow run, so
the gateway of any server finds it by asking the API. This only finds addresses and dials nothing
but the API.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

import httpx

from prefect_federated.agents.addresses import Address
from prefect_federated.errors import ConfigurationError, ConnectionFailed
from prefect_federated.kits import StartupKit
from prefect_federated.tasks.labels import ENDPOINT

CACHE_S = 1.0
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_CACHED_JOBS = 1024
_LOOKUPS_AT_ONCE = 16
_LOOKUP_TIMEOUT_S = 5.0
_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2


class _NoAnswer(ConnectionFailed):
    """The API gives no answer at present."""


@dataclass
class _Route:
    """What is known of a job: a lookup, until when it holds, and where the job was before."""

    until: float
    lookup: asyncio.Task[Address]
    last: Address | None


class Routes:
    """Finds the address behind a TLS name; answers about a job are kept for `CACHE_S` seconds.

    While the API gives no answer, a job is taken to be where it was: its controller lives on, and
    its certificate tells whether it is the job's.

    Args:
        kit: The server's kit: names of the federation, and what the API is asked with.
        api: Where the API listens.
        endpoint_hosts: Hosts that jobs may listen on, besides loopback and the kit's servers. Who
            may label a flow run must not be able to make the gateway dial just anything.
    """

    def __init__(self, kit: StartupKit, api: Address, endpoint_hosts: Collection[str] = ()) -> None:
        self._api = api
        self._job_suffix = kit.job_name("").lower()
        self._hosts = LOOPBACK_HOSTS | {server.host for server in kit.servers} | {*endpoint_hosts}
        self._known: OrderedDict[str, _Route] = OrderedDict()
        self._sni = {"sni_hostname": kit.api_name}
        self._client = httpx.AsyncClient(
            base_url=f"https://{api}",
            verify=kit.client_context(),
            timeout=_LOOKUP_TIMEOUT_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=_LOOKUPS_AT_ONCE),
        )

    async def close(self) -> None:
        """Closes the connections to the API."""
        await self._client.aclose()

    async def find(self, name: str | None) -> Address:
        """Returns where to carry a connection that asks for `name`.

        Raises:
            ConnectionFailed: it names a job that has no endpoint, or the API gives no answer.
        """
        job = self._job_of(name)
        if job is None:
            return self._api
        found = self._known.get(job)
        if found is None or found.until < time.monotonic():
            lookup = asyncio.create_task(self._look_up(job))
            lookup.add_done_callback(_note_outcome)
            last = None if found is None else found.last
            self._known[job] = found = _Route(time.monotonic() + CACHE_S, lookup, last)
            self._known.move_to_end(job)
            if len(self._known) > _CACHED_JOBS:
                self._known.popitem(last=False)
        try:
            found.last = await asyncio.shield(found.lookup)
        except _NoAnswer:
            if found.last is None:
                raise
        return found.last

    def _job_of(self, name: str | None) -> str | None:
        if name is None or not name.endswith(self._job_suffix):
            return None
        job = name.removesuffix(self._job_suffix)
        with contextlib.suppress(ValueError):
            if str(UUID(job)) == job:
                return job
        return None

    async def _look_up(self, job: str) -> Address:
        response = await self._ask(f"/api/flow_runs/{job}")
        if response.status_code == httpx.codes.NOT_FOUND:
            raise ConnectionFailed(f"job {job}: the API knows no such flow run")
        if response.is_error:
            kind = _NoAnswer if response.is_server_error else ConnectionFailed
            raise kind(
                f"job {job}: the API at {self._api} answered {response.status_code} to "
                f"GET /api/flow_runs/{job}; its log says why"
            )
        label = (response.json().get("labels") or {}).get(ENDPOINT)
        if not label:
            raise ConnectionFailed(f"job {job}: has no endpoint now; its controller is not running")
        try:
            address = Address.parse(str(label))
        except ConfigurationError as error:
            raise ConnectionFailed(f"job {job}: label {ENDPOINT}: {error}") from error
        if address.host not in self._hosts:
            raise ConnectionFailed(
                f"job {job}: its endpoint {address} is not on a host that this gateway dials "
                f"({', '.join(sorted(self._hosts))}); if it should, start the gateway with "
                f"--endpoint-host {address.host}"
            )
        return address

    async def _ask(self, path: str) -> httpx.Response:
        """Asks again where the API is busy: on SQLite some calls meet a locked database."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await self._client.get(path, extensions=self._sni)
            except httpx.HTTPError as error:
                if attempt == _ATTEMPTS:
                    raise _NoAnswer(
                        f"the API at {self._api} gives no answer "
                        f"({type(error).__name__}: {error}); is it running?"
                    ) from error
            else:
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or attempt == _ATTEMPTS:
                    return response
            await asyncio.sleep(_RETRY_DELAY_S)
        raise AssertionError("unreachable")


def _note_outcome(lookup: asyncio.Task[Address]) -> None:
    """A lookup whose last asker has gone may fail unheard."""
    if not lookup.cancelled():
        lookup.exception()
