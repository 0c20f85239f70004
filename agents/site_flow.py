"""What a site runs for a job: the flow `join`, which attaches to the job and hosts its executor."""

import logging
from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from prefect_federated.errors import ConfigurationError, FederatedError, JobEnded
from prefect_federated.executors import Site, load_executor, serve, site_seed
from prefect_federated.kits import Role, load_kit
from prefect_federated.messages import JsonValue
from prefect_federated.settings import Settings
from prefect_federated.transport.site_filters import SiteFilters
from prefect_federated.transport.tls_client import TlsLink

log = logging.getLogger("prefect_federated.site")


@flow(name="join", persist_result=False)
def join(
    job: str,
    executor: str,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    filters: list[dict[str, Any]] | None = None,
) -> State[None]:
    """Takes part in a job until it ends.

    The run's state says how it ended; an executor's traceback stays in the site's own log.

    Args:
        job: Id of the controller's flow run.
        executor: Import path of the executor, installed here.
        config: The job's settings for executors.
        seed: The job's seed.
        filters: The job's filters.
    """
    try:
        _take_part(job, executor, config or {}, seed, filters or [])
    except JobEnded as end:
        if end.outcome in ("completed", "over"):
            return Completed(message=str(end))
        return Cancelled(message=str(end))
    except FederatedError as error:
        log.error("%s: %s", type(error).__name__, error)
        return Failed(message=f"{type(error).__name__}: {error}")
    except Exception as error:
        log.exception("the executor failed")
        first_line = next(iter(str(error).splitlines()), "")
        return Failed(message=f"{type(error).__name__}: {first_line}")
    raise AssertionError("a site takes part until the job ends")


def _take_part(
    job: str, executor: str, config: dict[str, Any], seed: int, filters: Sequence[JsonValue]
) -> None:
    settings = Settings()
    if settings.kit is None or settings.data is None or settings.state is None:
        raise ConfigurationError(
            "this process is not a site's: PREFECT_FEDERATED_KIT, _DATA or _STATE is not set. "
            "`prefect-federated site start` sets them."
        )
    kit = load_kit(settings.kit, role=Role.SITE)
    loaded = load_executor(executor)
    state = settings.state / "jobs" / job
    state.mkdir(parents=True, exist_ok=True)
    name = kit.identity.name
    site = Site(name, settings.data, state, config, site_seed(seed, name), log=log)
    passing = SiteFilters(filters, settings.limits)
    with TlsLink(kit, job, settings.limits, settings.labels, passing, site) as link:
        serve(loaded, site, link)
