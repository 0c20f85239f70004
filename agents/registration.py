"""A site's certificate is its registration: its first request makes what it needs at the server.

That is a work pool of the site's name and the deployment `join/<site>`, through which jobs start at
the site. So a site that is provisioned later needs nothing to be done at the server.
"""

import asyncio
import logging
from collections import defaultdict

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_federated.agents.peers import identity_in, refuse
from prefect_federated.errors import FederatedError
from prefect_federated.kits import Identity, Role
from prefect_federated.messages import JsonValue

SITE_FLOW = "join"
SITE_FLOW_ENTRYPOINT = "prefect_federated.agents.site_flow.join"
SITE_POOL_TYPE = "federated-site"
_ATTEMPTS = 5
_RETRY_DELAY_S = 0.2

log = logging.getLogger("prefect_federated.api")


class RegistrationFailed(FederatedError):
    """The API did not take a site's work pool or deployment; the message has its reason."""


class SiteRegistration:
    """ASGI middleware that registers a site before its first answer in this process's life.

    A failure is answered with 503 and the reason, and tried again at the site's next request.

    Args:
        app: Prefect's server app; what registration needs is asked of it directly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._registered: set[Identity] = set()
        self._locks: defaultdict[Identity, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, websocket or lifespan."""
        if scope["type"] != "lifespan":
            identity = identity_in(scope)
            if identity.role is Role.SITE and identity not in self._registered:
                try:
                    await self._ensure(identity)
                except RegistrationFailed as error:
                    log.error("%s", error)
                    await refuse(scope, receive, send, 503, str(error))
                    return
        await self._app(scope, receive, send)

    async def _ensure(self, site: Identity) -> None:
        async with self._locks[site]:
            if site not in self._registered:
                await register_site(self._app, site)
                self._registered.add(site)
                log.info("site %r of %r is registered", site.name, site.organisation)


async def register_site(app: ASGIApp, site: Identity) -> None:
    """Makes a site's work pool and deployment, or finds them made.

    Args:
        app: Prefect's server app, started.
        site: The site, as in its certificate.

    Raises:
        RegistrationFailed: the API refused; says what and why.
    """
    from prefect_federated.agents.worker import FederatedSiteWorker

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://prefect/api",
    ) as api:
        pool: dict[str, JsonValue] = {
            "name": site.name,
            "type": SITE_POOL_TYPE,
            "description": f"Runs jobs at site {site.name}, {site.organisation}.",
            "base_job_template": FederatedSiteWorker.get_default_base_job_template(),
        }
        made = await _post(api, site, "work_pools/", pool, accept=httpx.codes.CONFLICT)
        if made.status_code == httpx.codes.CONFLICT:
            await _check_pool(api, site)
        flow = await _post(api, site, "flows/", {"name": SITE_FLOW})
        await _post(
            api,
            site,
            "deployments/",
            {
                "name": site.name,
                "flow_id": flow.json()["id"],
                "work_pool_name": site.name,
                "entrypoint": SITE_FLOW_ENTRYPOINT,
                "enforce_parameter_schema": False,
                "description": f"Lets site {site.name}, {site.organisation}, take part in a job.",
                "tags": ["federated-site"],
            },
        )


async def _post(
    api: httpx.AsyncClient,
    site: Identity,
    path: str,
    content: dict[str, JsonValue],
    accept: int | None = None,
) -> httpx.Response:
    """Asks again where the API is busy: on SQLite some calls meet a locked database."""
    for _ in range(_ATTEMPTS):
        response = await api.post(path, json=content)
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        await asyncio.sleep(_RETRY_DELAY_S)
    if response.is_error and response.status_code != accept:
        raise RegistrationFailed(
            f"site {site.name!r} cannot be registered: POST /api/{path} was answered "
            f"{response.status_code}: {response.text[:500]}. The server's log says more; the "
            "site's next request tries again."
        )
    return response


async def _check_pool(api: httpx.AsyncClient, site: Identity) -> None:
    found = await api.get(f"work_pools/{site.name}")
    kind = found.json().get("type") if found.is_success else f"unknown ({found.status_code})"
    if kind != SITE_POOL_TYPE:
        raise RegistrationFailed(
            f"site {site.name!r} cannot be registered: its work pool exists with the type {kind!r} "
            f"instead of {SITE_POOL_TYPE!r}. Delete it (`prefect work-pool delete {site.name}`); "
            "the site's next request makes it anew."
        )
