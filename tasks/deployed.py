"""A real federation for one job: its endpoint, its sites' runs, its heartbeat, its end.

The controller's flow run at Prefect carries what others need to know as labels: the endpoint (for
the gateways), the epoch, the beat and the round (for the overseer), the sites' runs (for itself,
when it comes back).
"""

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed

from prefect_federated.errors import ConfigurationError, NotEnoughSites, StaleController
from prefect_federated.kits import Role, load_kit
from prefect_federated.settings import Settings
from prefect_federated.tasks.labels import BEAT, BEAT_S, ENDPOINT, EPOCH, ROUND, put_labels
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.site_runs import SiteRuns, choose_sites
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_server import TlsEndpoint

_RETRIES_OF_A_BEAT = 2
_LOOK_FOR_SITES_S = 4.0  # between two looks for sites that have become known
_REASONS = 10  # sites that are missing and named with a reason
_ATTACH_AGAIN_S = 5.0  # sites look for their controller every 3 s


@contextmanager
def deployed(job: JobParameters) -> Iterator[Hub]:
    """Opens the federation for a job: dispatches the sites and waits until enough have joined.

    When the block ends, the sites are told so, except where the job itself will come back (a retry
    of the flow, a restart of the server): then their processes wait for it.

    Raises:
        Abort: Prefect's signal that this process must end without reporting a state: a newer
            attempt has taken over, or the run was set to Failed here because no retry could help.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("a federation can be opened only inside a Prefect flow run.")
    run_id = context.flow_run.id
    with get_client(sync_client=True) as client:
        epoch = _claim_epoch(client, run_id)
        try:
            with _opened(job, client, run_id, epoch) as (runs, online):
                try:
                    runs.dispatch(list(runs.hub.sites))
                    _wait_for_sites(job, runs, online)
                    yield runs.hub
                except StaleController:
                    raise
                except Exception as error:
                    run = client.read_flow_run(run_id)
                    if _is_final(error) or run.run_count > (run.empirical_policy.retries or 0):
                        runs.end("failed", f"{type(error).__name__}: {error}")
                    raise
                except BaseException:
                    if _is_cancelled(client.read_flow_run(run_id)):
                        runs.end("cancelled", "the job was cancelled")
                    raise
                _stop_if_stale(client, run_id, runs.hub)
                runs.end("completed", "all rounds are done")
        except StaleController as error:
            get_run_logger().warning("%s", error)
            raise Abort(str(error)) from error
        except (ConfigurationError, NotEnoughSites) as error:
            get_run_logger().error("%s", error)
            message = f"{type(error).__name__}: {error}"
            client.set_flow_run_state(run_id, Failed(message=message), force=True)
            raise Abort(message) from error


def _is_final(error: Exception) -> bool:
    """Whether a retry cannot help: the people, not the sites, have to do something."""
    return isinstance(error, ConfigurationError | NotEnoughSites)


def _is_cancelled(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled())


def _claim_epoch(client: SyncPrefectClient, run_id: UUID) -> int:
    """Returns this attempt's number, larger than that of any attempt before, and publishes it."""
    run = client.read_flow_run(run_id)
    epoch = max(run.run_count, int(run.labels.get(EPOCH, 0)) + 1)
    put_labels(client, run_id, {EPOCH: epoch})
    return epoch


@contextmanager
def _opened(
    job: JobParameters, client: SyncPrefectClient, run_id: UUID, epoch: int
) -> Iterator[tuple[SiteRuns, list[str]]]:
    """Opens the job's endpoint and beats; yields the sites' runs, and who of them is online."""
    settings = Settings()
    if settings.kit is None:
        raise ConfigurationError(
            "this process has no startup kit (PREFECT_FEDERATED_KIT). Jobs run on the server's "
            "worker: start them with `prefect deployment run`, or use `prefect-federated simulate`."
        )
    kit = load_kit(settings.kit, role=Role.SERVER)
    asked, online = choose_sites(client, job)
    hub = Hub(
        str(run_id),
        epoch,
        asked,
        max_failures=job.max_failures,
        updates_in_memory=job.updates_in_memory,
    )
    with TlsEndpoint(hub, kit, settings.endpoint_host, settings.limits) as endpoint:
        put_labels(client, run_id, {ENDPOINT: endpoint.address})
        runs = SiteRuns(client, run_id, hub, job, partial(_stop_if_stale, client, run_id, hub))
        with _Pulse(client, run_id, runs, endpoint.address):
            yield runs, online
        try:
            put_labels(client, run_id, {BEAT: ""})  # silence from here on is no death
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            get_run_logger().warning("the last beat was not heard: %s", error)


def _wait_for_sites(job: JobParameters, runs: SiteRuns, online: list[str]) -> None:
    """Waits until enough sites are attached; see `JobParameters.min_sites`."""
    hub, asked = runs.hub, runs.hub.sites
    needed = job.min_sites or len(asked if job.sites else online)
    if hub.epoch > 1:  # a job that comes back goes on without a site that is lost
        needed = min(needed, job.updates_needed(len(asked)))
    deadline = hub.clock() + job.join_timeout_s
    while (there := len(hub.attached())) < needed:
        hub.raise_if_stale()
        lost = {site: reason for site in asked if (reason := hub.given_up(site))}
        too_late = hub.clock() >= deadline
        if too_late or len(asked) - len(lost) < needed:
            waited = f" within {job.join_timeout_s:g} s" if too_late else ""
            raise NotEnoughSites(
                f"{there} of the {needed} sites that the job needs have joined{waited}. Missing: "
                f"{_why_missing(runs, lost)}."
            )
        with hub.changed:  # not while the API is asked: drivers hand over what arrives
            if len(hub.attached()) == there:
                hub.changed.wait(max(0.0, min(deadline - hub.clock(), 1.0)))
    if hub.epoch > 1:
        _wait_for_the_rest(runs)
    runs.note_present()


def _why_missing(runs: SiteRuns, lost: Mapping[str, str]) -> str:
    missing = [site for site in runs.hub.sites if not runs.hub.is_attached(site)]
    reasons = [f"{s}: {lost.get(s) or runs.why_absent(s)}" for s in missing[:_REASONS]]
    more = f"; and {len(missing) - _REASONS} more" if len(missing) > _REASONS else ""
    return "; ".join(reasons).rstrip(".") + more


def _wait_for_the_rest(runs: SiteRuns) -> None:
    """Waits a moment for the sites that are at work: the round in flight should lose none."""
    hub, at_work = runs.hub, runs.at_work()
    deadline = hub.clock() + _ATTACH_AGAIN_S
    with hub.changed:
        while not at_work <= set(hub.attached()) and hub.clock() < deadline:
            hub.raise_if_stale()
            hub.changed.wait(deadline - hub.clock())


def _stop_if_stale(client: SyncPrefectClient, run_id: UUID, hub: Hub) -> FlowRun:
    """Returns the job's run as Prefect has it now.

    Raises:
        StaleController: a newer attempt has taken over; whoever waits in the hub learns it too.
    """
    run = client.read_flow_run(run_id)
    newest = int(run.labels.get(EPOCH, 0))
    if newest > hub.epoch:
        hub.interrupt(f"attempt {newest} of this job has taken over; attempt {hub.epoch} stops.")
        hub.raise_if_stale()
    return run


class _Pulse:
    """Two threads: one beats, learns of cancellation and of newer attempts, and minds absent sites;
    one welcomes new sites, however long that takes.

    Args:
        client: Prefect's client.
        run_id: The controller's flow run.
        runs: The sites' runs.
        endpoint: Where the job's endpoint listens.
    """

    def __init__(
        self, client: SyncPrefectClient, run_id: UUID, runs: SiteRuns, endpoint: str
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._hub = runs.hub
        self._runs = runs
        self._endpoint = endpoint
        self._log = get_run_logger()
        self._stop = threading.Event()
        self._beats = 0
        self._is_epoch_lost = False
        self._failures: set[str] = set()  # that have been logged
        self._threads = [
            # sites that come later are dispatched in the flow's context
            threading.Thread(
                target=contextvars.copy_context().run, args=(work,), name=name, daemon=True
            )
            for name, work in (("pulse", self._beat), ("welcome", self._welcome))
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _beat(self) -> None:
        steps = (self._obey, self._say, self._runs.note_present, self._runs.mind_absent)
        self._repeat(steps, BEAT_S)

    def _welcome(self) -> None:
        if not self._stop.wait(_LOOK_FOR_SITES_S):
            self._repeat((self._runs.welcome_new,), _LOOK_FOR_SITES_S)

    def _repeat(self, steps: Sequence[Callable[[], None]], pause_s: float) -> None:
        """Takes steps again and again; whatever fails, the next time comes."""
        # The next time tries again by itself. With Prefect's own number of retries one beat could
        # be stuck for half a minute after the API is back.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: _RETRIES_OF_A_BEAT}):
            while not self._stop.is_set():
                try:
                    for step in steps:
                        self._take(step)
                except StaleController:
                    return  # the flow learns it from the hub
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                    self._log.warning("Prefect's API does not answer the heartbeat: %s", error)
                self._stop.wait(pause_s)

    def _take(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (StaleController, httpx.HTTPError, PrefectHTTPStatusError):
            raise
        except Exception as error:  # such as a site's run that somebody has deleted
            said = f"{type(error).__name__}: {error}"
            if said not in self._failures:
                self._failures.add(said)
                self._log.exception("the job's heartbeat goes on, though a part of it failed")

    def _say(self) -> None:
        # The endpoint, too, and the epoch where it is gone: a process that patches labels at the
        # same time could have undone them (see `labels`). Not always the epoch: a controller that
        # is frozen here, and thaws when a newer one has taken over, would undo that one's.
        self._beats += 1
        labels: dict[str, str | int] = {
            ENDPOINT: self._endpoint, ROUND: self._hub.round,
            BEAT: f"{self._hub.epoch}.{self._beats}",
        }  # fmt: skip
        if self._is_epoch_lost:
            labels[EPOCH] = self._hub.epoch
        put_labels(self._client, self._run_id, labels)

    def _obey(self) -> None:
        run = _stop_if_stale(self._client, self._run_id, self._hub)
        self._is_epoch_lost = int(run.labels.get(EPOCH, 0)) < self._hub.epoch
        if _is_cancelled(run):
            self._runs.end("cancelled", "the job was cancelled")
        elif run.state is not None and run.state.is_final():
            self._hub.interrupt(f"the run was set to {run.state.name} from outside.")
            self._runs.end("failed", f"the run was set to {run.state.name}")
