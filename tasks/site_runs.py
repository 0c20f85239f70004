"""The sites' flow runs of one job: choosing sites, dispatching, starting again, cancelling."""

import json
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry, Cancelled, Cancelling

from prefect_federated.errors import ConfigurationError, NotEnoughSites
from prefect_federated.tasks.labels import SITE_RUNS, put_labels
from prefect_federated.tasks.paging import in_pages, read_all
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.transport.hub import Hub

SITE_FLOW = "join"
_STARTS_A_ROUND = 3  # a site whose process crashes so often in one round is given up
_AT_ONCE = 8  # sites that are dispatched at the same time


def choose_sites(client: SyncPrefectClient, job: JobParameters) -> tuple[list[str], list[str]]:
    """Returns the sites that the job asks, and those of them whose worker is online.

    Raises:
        ConfigurationError: the job names a site that the federation does not know.
        NotEnoughSites: the job asks for more sites than there are.
    """
    known = _known_sites(client)
    unknown = sorted(set(job.sites or ()) - set(known))
    if unknown:
        raise ConfigurationError(
            f"the job names the sites {', '.join(unknown)}, which this federation does not know. "
            f"It knows: {', '.join(known) or 'none'}. A site is known once `prefect-federated site "
            "start` has reached the server with its kit."
        )
    asked = list(dict.fromkeys(job.sites or known))
    if len(asked) < (job.min_sites or 1):
        raise NotEnoughSites(
            f"the job asks for {job.min_sites or 1} sites; there are {len(asked)} "
            f"({', '.join(asked) or 'none'}). Start more sites, or lower min_sites."
        )
    return asked, [site for site in asked if _is_online(client, site)]


def _known_sites(client: SyncPrefectClient) -> list[str]:
    named = FlowFilter(name=FlowFilterName(any_=[SITE_FLOW]))
    return sorted(site.name for site in read_all(client.read_deployments, flow_filter=named))


def _is_online(client: SyncPrefectClient, site: str) -> bool:
    try:
        return client.read_work_pool(site).status == WorkPoolStatus.READY
    except ObjectNotFound:
        return False


class SiteRuns:
    """The flow run of each site for one job.

    Args:
        client: Prefect's client; calls may come from several threads.
        run_id: The controller's flow run.
        hub: The job's hub, which knows who is attached.
        job: The job's parameters.
        stop_if_stale: Raises `StaleController` if a newer attempt of the job has taken over.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        run_id: UUID,
        hub: Hub,
        job: JobParameters,
        stop_if_stale: Callable[[], object],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self.hub = hub
        self._job = job
        self._stop_if_stale = stop_if_stale
        self._log = get_run_logger()
        self._lock = threading.Lock()
        self._runs: dict[str, UUID] = {}
        self._starts: dict[tuple[str, int], int] = {}
        self._present: set[str] = set()
        self._left_out: set[str] = set()
        self._first = frozenset(hub.sites)  # which the job itself dispatches

    def dispatch(self, sites: Sequence[str]) -> None:
        """Creates a flow run in the pool of each site that has none yet, and notes it for later.

        A job that comes back finds the runs of its earlier attempt by its labels, and those that
        were created just before it died by their idempotency key; the ones that have ended are
        started again.
        """
        labels = self._client.read_flow_run(self._run_id).labels
        earlier = json.loads(str(labels.get(SITE_RUNS, "{}")))
        with ThreadPoolExecutor(min(len(sites), _AT_ONCE)) as pool:
            dispatched = [
                pool.submit(copy_context().run, self._dispatch_one, site, earlier.get(site))
                for site in sites
            ]
        with self._lock:
            runs = {site: str(run_id) for site, run_id in self._runs.items()}
        put_labels(self._client, self._run_id, {SITE_RUNS: json.dumps(runs)})
        for started in dispatched:
            started.result()  # raises what went wrong

    def _dispatch_one(self, site: str, earlier: str | None) -> None:
        if self.hub.is_over:  # it ended while its new sites were dispatched
            return
        run_id = self._start(site) if earlier is None else UUID(earlier)
        state = None if earlier is None else self._client.read_flow_run(run_id).state
        if state is not None and state.is_final():
            again: State[None] = AwaitingRetry(message="The job has come back.")
            self._client.set_flow_run_state(run_id, again, force=True)
        with self._lock:
            self._runs[site] = run_id

    def welcome_new(self) -> None:
        """Dispatches sites that have become known since the job began, if it is for all sites."""
        if self._job.sites or self.hub.is_over:
            return
        known = set(_known_sites(self._client))
        with self._lock:
            new = sorted(known - self._first - self._runs.keys())
        if not new:
            return
        self._stop_if_stale()
        self._log.info("new in the federation, asked to join: %s", ", ".join(new))
        for site in new:
            self.hub.admit(site)
        self.dispatch(new)

    def _start(self, site: str) -> UUID:
        parameters: dict[str, object] = {
            "job": str(self._run_id),
            "executor": self._job.executor,
            "config": self._job.config,
            "seed": self._job.seed,
        }
        if self._job.filters:
            parameters["filters"] = [spec.to_json() for spec in self._job.filters]
        flow_run: FlowRun = run_deployment(  # type: ignore[assignment]  # typed for async too
            f"{SITE_FLOW}/{site}",
            parameters=parameters,
            flow_run_name=f"{SITE_FLOW}/{site}",
            idempotency_key=f"{self._run_id}-{site}",
            timeout=0,
            as_subflow=True,
        )
        return flow_run.id

    def note_present(self) -> None:
        """Logs which sites have joined, and which are gone, since it was called last."""
        if self.hub.is_over:
            return
        with self._lock:
            present, before = set(self.hub.attached()), self._present
            self._present = present
        if joined := sorted(present - before):
            self._log.info("joined: %s", ", ".join(joined))
        if gone := sorted(before - present):
            self._log.info("no connection any more: %s", ", ".join(gone))
        self._note_left_out()

    def _note_left_out(self) -> None:
        reasons = {site: self.hub.left_out(site) for site in self.hub.sites}
        left_out = {site for site, reason in reasons.items() if reason is not None}
        with self._lock:
            before, self._left_out = self._left_out, left_out
        for site in sorted(left_out - before):
            self._log.warning("site %s is %s", site, reasons[site])
        if back := sorted(before - left_out):
            self._log.info("taken back: %s", ", ".join(back))

    def mind_absent(self) -> None:
        """Looks at the runs of sites that are not attached: starts crashed ones again, gives up
        those that cannot come back."""
        if self.hub.is_over:
            return
        absent = set(self.hub.sites) - set(self.hub.attached())
        for site, run in self._read_runs(absent).items():
            state = run.state
            if state is None or not state.is_final() or self.hub.is_attached(site):
                continue
            if state.is_crashed() or state.is_completed():
                self._start_again(site, run)
            elif self.hub.given_up(site) is None:
                reason = f"its run is {state.name}: {state.message or 'no reason given'}"
                self._log.warning("site %s: %s", site, reason)
                self.hub.give_up(site, reason)

    def _start_again(self, site: str, run: FlowRun) -> None:
        tried = self._starts.get((site, self.hub.round), 0)
        message = run.state.message if run.state else ""
        if tried >= _STARTS_A_ROUND:
            if self.hub.given_up(site) is None:
                self.hub.give_up(site, f"its process crashed {tried + 1} times: {message}")
            return
        self._stop_if_stale()  # a controller that was frozen may see here what is long over
        self._starts[(site, self.hub.round)] = tried + 1
        self._log.warning("site %s: its process ended (%s); starting it again", site, message)
        self._client.set_flow_run_state(
            run.id,
            AwaitingRetry(message="The site's process ended; it is started again."),
            force=True,
        )

    def end(self, outcome: str, reason: str) -> None:
        """Tells the sites that the job is over, and cancels the runs of those that do not hear it.

        Of a job that is cancelled, all runs are: an executor may be at work for long before it
        hears of anything.
        """
        absent = set(self.hub.sites) - set(self.hub.attached())
        self.hub.end(outcome, reason)
        try:
            self._cancel(set(self.hub.sites) if outcome == "cancelled" else absent)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            self._log.warning("runs of sites are left to the overseer to end: %s", error)

    def _cancel(self, sites: Collection[str]) -> None:
        for run in self._read_runs(sites).values():
            if run.state is None or run.state.is_final() or run.state.is_cancelling():
                continue
            waiting = run.state.type in (StateType.SCHEDULED, StateType.PENDING)
            state = Cancelled if waiting else Cancelling
            # Not by force: a run that has ended in between must stay as it ended.
            self._client.set_flow_run_state(run.id, state(message="The job is over."))

    def at_work(self) -> set[str]:
        """Returns the sites whose run is in a process now."""
        runs = self._read_runs(self.hub.sites)
        return {site for site, run in runs.items() if run.state and run.state.is_running()}

    def why_absent(self, site: str) -> str:
        """Returns, in a few words, why a site has not joined."""
        run = self._client.read_flow_run(self._runs[site]) if site in self._runs else None
        if run is None or run.state is None:
            return "it was not dispatched"
        if run.state.is_scheduled():
            return (
                "its worker has not picked the job up; is `prefect-federated site start` running?"
            )
        return f"its run is {run.state.name}: {run.state.message or 'it has not attached yet'}"

    def _read_runs(self, sites: Collection[str]) -> dict[str, FlowRun]:
        """Returns the runs of some sites, as they are now."""
        with self._lock:
            wanted = {run_id: site for site, run_id in self._runs.items() if site in sites}
        if not wanted:
            return {}
        return {
            wanted[run.id]: run
            for ids in in_pages(list(wanted))
            for run in read_all(
                self._client.read_flow_runs,
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(ids))),
            )
        }
