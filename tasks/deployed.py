"""A real federation for one job: its endpoint, its sites' runs, its heartbeat, its end.

The controller's flow run at Prefect carries what others need to know as labels: the endpoint (for
the gateways), the epoch, the beat and the round (for the overseer), the sites' runs (for itself,
when it comes back).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import Failed

from prefect_federated.errors import ConfigurationError, NotEnoughSites, StaleController
from prefect_federated.kits import Role, load_kit
from prefect_federated.settings import Settings
from prefect_federated.tasks.labels import BEAT, BEAT_S, ENDPOINT, EPOCH, ROUND, SITE_RUNS
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.site_runs import SiteRuns, choose_sites
from prefect_federated.transport.grpc_server import GrpcEndpoint
from prefect_federated.transport.hub import Hub

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
    retries = (context.flow.retries if context.flow else 0) or 0
    with get_client(sync_client=True) as client:
        epoch = _claim_epoch(client, run_id)
        try:
            with _opened(job, client, run_id, epoch) as (runs, online):
                try:
                    dispatched = runs.dispatch(list(runs.hub.sites))
                    client.update_flow_run_labels(run_id, {SITE_RUNS: dispatched})
                    _wait_for_sites(job, runs, online)
                    yield runs.hub
                except StaleController:
                    raise
                except Exception as error:
                    run = client.read_flow_run(run_id)
                    if _is_final(error) or run.run_count > retries:
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
    client.update_flow_run_labels(run_id, {EPOCH: epoch})
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
    hub = Hub(str(run_id), epoch, asked)
    with GrpcEndpoint(hub, kit, len(asked), settings.endpoint_host, settings.limits) as endpoint:
        client.update_flow_run_labels(run_id, {ENDPOINT: endpoint.address})
        runs = SiteRuns(client, run_id, hub, job)
        with _Pulse(client, run_id, runs):
            yield runs, online
        try:
            client.update_flow_run_labels(run_id, {BEAT: ""})  # silence from here on is no death
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            get_run_logger().warning("the last beat was not heard: %s", error)


def _wait_for_sites(job: JobParameters, runs: SiteRuns, online: list[str]) -> None:
    """Waits until enough sites are attached; see `JobParameters.min_sites`."""
    hub, asked = runs.hub, runs.hub.sites
    needed = job.min_sites or len(asked if job.sites else online)
    if hub.epoch > 1:  # a job that comes back goes on without a site that is lost
        needed = min(needed, job.updates_needed(len(asked)))
    deadline = hub.clock() + job.join_timeout_s
    with hub.changed:
        while len(hub.attached()) < needed:
            hub.raise_if_stale()
            lost = {site: reason for site in asked if (reason := hub.given_up(site))}
            too_late = hub.clock() >= deadline
            if too_late or len(asked) - len(lost) < needed:
                missing = [site for site in asked if not hub.is_attached(site)]
                reasons = "; ".join(f"{s}: {lost.get(s) or runs.why_absent(s)}" for s in missing)
                waited = f" within {job.join_timeout_s:g} s" if too_late else ""
                raise NotEnoughSites(
                    f"{len(hub.attached())} of the {needed} sites that the job needs have joined"
                    f"{waited}. Missing: {reasons.rstrip('.')}."
                )
            hub.changed.wait(max(0.0, min(deadline - hub.clock(), 1.0)))
    if hub.epoch > 1:
        _wait_for_the_rest(runs)
    runs.note_present()


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
    """A thread that beats, learns of cancellation and of newer attempts, and minds absent sites."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID, runs: SiteRuns) -> None:
        self._client = client
        self._run_id = run_id
        self._hub = runs.hub
        self._runs = runs
        self._log = get_run_logger()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        beat = 0
        while not self._stop.is_set():
            beat += 1
            try:
                self._client.update_flow_run_labels(
                    self._run_id, {BEAT: f"{self._hub.epoch}.{beat}", ROUND: self._hub.round}
                )
                self._obey()
                self._runs.note_present()
                self._runs.mind_absent()
            except StaleController:
                return  # the flow learns it from the hub
            except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                self._log.warning("Prefect's API does not answer the heartbeat: %s", error)
            self._stop.wait(BEAT_S)

    def _obey(self) -> None:
        run = _stop_if_stale(self._client, self._run_id, self._hub)
        if _is_cancelled(run):
            self._runs.end("cancelled", "the job was cancelled")
        elif run.state is not None and run.state.is_final():
            self._hub.interrupt(f"the run was set to {run.state.name} from outside.")
            self._runs.end("failed", f"the run was set to {run.state.name}")
