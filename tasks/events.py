"""A job's moments: told to the job's own functions (hooks), and to Prefect as events.

Both happen on a thread of their own, in the order of the moments: no round waits for them, and what
fails there ends no job. The events' resource is `federated.job.<flow run id>`; the flow run, its
flow and deployment, and the site are related, so that an automation can act on them.
"""

import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_federated.messages import JsonValue
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment

Hook: TypeAlias = Callable[[Moment], None]
"""A plain function of a job, told of one kind of moment."""

EVENTS: Mapping[str, str] = {
    "round_started": "federated.round.started",
    "round_completed": "federated.round.completed",
    "update_received": "federated.update.received",
    "best_model": "federated.model.best",
    "site_lost": "federated.site.lost",
    "site_back": "federated.site.back",
    "job_ended": "federated.job.ended",
}
"""Name of a moment -> name of its Prefect event."""

_SAID = frozenset({"metrics_logged", "progressed"})
"""Moments that hooks are told of and Prefect is not: there are too many of them."""
_SAID_WAITING = 50_000  # such moments that wait for slow hooks at most; then new ones are dropped
_SAID_END_S = 30.0  # how long a job's end waits until the hooks have been told of them
_SITES_WITH_EVENTS = 32  # the updates of larger calls are in the round's event only,
_UPDATES_AT_ONCE = 64  # and so are those of rounds that follow each other so quickly
_UPDATES_A_SECOND = 5.0  # that the server would do little but record them


@dataclass(frozen=True)
class Hooks:
    """Functions of a job, each called with a `Moment`; what they raise is logged.

    Args:
        round_started: The first sites of a round were asked; detail: kind, asked.
        update_received: A site's update counts; detail: kind, seconds, bytes, metrics.
        round_completed: The flow has aggregated a round's updates: it makes a snapshot, asks the
            sites for something else, or ends; detail: the round's row in the job's table.
        best_model: A model is the best so far; detail: metric, value, path.
        site_lost: A site's connection broke, or it was left out; detail: reason.
        site_back: It is back, or taken back.
        metrics_logged: A site has sent numbers while it works (`Site.log_metrics`); detail: kind,
            metrics (name -> number, or "nan", "inf", "-inf"), step, time (seconds since 1970 at the
            site), and dropped where the site had to drop numbers before these.
        progressed: A site has said how far it has come; detail: kind, done, total, unit.
        job_ended: detail: outcome ("completed", "failed" or "cancelled") and reason.
    """

    round_started: Sequence[Hook] = ()
    update_received: Sequence[Hook] = ()
    round_completed: Sequence[Hook] = ()
    best_model: Sequence[Hook] = ()
    site_lost: Sequence[Hook] = ()
    site_back: Sequence[Hook] = ()
    metrics_logged: Sequence[Hook] = ()
    progressed: Sequence[Hook] = ()
    job_ended: Sequence[Hook] = ()

    def named(self, moment: str) -> Sequence[Hook]:
        """Returns the functions for one kind of moment."""
        found: Sequence[Hook] = getattr(self, moment)
        return found


class Events:
    """Tells a job's moments to its hooks and to Prefect. Use as a context manager.

    Args:
        hooks: The job's functions.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._log = get_run_logger()
        self._job = str(flow_run.id or "simulated")
        self._name = flow_run.name or self._job
        self._moments: queue.SimpleQueue[Moment | None] = queue.SimpleQueue()
        self._said_dropped = 0
        self._said_until = math.inf
        self._large: set[tuple[str, int]] = set()
        self._allowance, self._counted_at = float(_UPDATES_AT_ONCE), time.monotonic()
        self._started = self._completed = 0
        self._read: Moment | None = None  # the round whose replies the flow is aggregating
        context = contextvars.copy_context()  # from which Prefect knows flow, deployment and tags
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="events", daemon=True
        )

    def __enter__(self) -> "Events":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._said_until = time.monotonic() + _SAID_END_S
        self._moments.put(None)
        self._thread.join()
        if self._said_dropped:
            self._log.warning(
                "%d notes that sites sent while they worked were dropped: the job's hooks for "
                "metrics_logged and progressed are slower than the sites speak",
                self._said_dropped,
            )

    def listen_to(self, hub: Hub) -> None:
        """Tells of what happens to the sites, too."""
        hub.listeners.append(self._take)

    def _take(self, moment: Moment) -> None:
        if moment.name in _SAID:
            if not self._hooks.named(moment.name):
                return
            if self._moments.qsize() >= _SAID_WAITING:
                self._said_dropped += 1
                return
        self._moments.put(moment)

    def tell(
        self,
        name: str,
        round: int = 0,
        detail: Mapping[str, JsonValue] | None = None,
        site: str = "",
    ) -> None:
        """Tells of a moment; returns at once.

        Args:
            name: One of `EVENTS`.
            round: The round that it belongs to.
            detail: A few JSON values.
            site: The site that it is about, if it is about one.
        """
        self._moments.put(Moment(name, site, round, detail or {}))

    def asked(self, kind: str, round: int, sites: int) -> None:
        """Notes a call of a round: the first one starts it, and completes the one before."""
        self.aggregated()
        if sites > _SITES_WITH_EVENTS:
            self._large = {(kind, round)} | {(k, r) for k, r in self._large if r >= round - 1}
        if round > self._started:
            self._started = round
            self.tell("round_started", round, {"kind": kind, "asked": sites})

    def answered(self, round: int, row: Mapping[str, JsonValue]) -> None:
        """Notes that a round has been read; it is complete once it is `aggregated`."""
        if round > self._completed:
            self.aggregated()
            self._completed = round
            self._read = Moment("round_completed", "", round, row)

    def aggregated(self) -> None:
        """Notes that the flow has aggregated what it has read."""
        read, self._read = self._read, None
        if read is not None:
            self._moments.put(read)

    def _run(self) -> None:
        while (moment := self._moments.get()) is not None:
            if moment.name in _SAID and time.monotonic() > self._said_until:
                self._said_dropped += 1
                continue
            for hook in self._hooks.named(moment.name):
                try:
                    hook(moment)
                except Exception:  # a user's code
                    self._log.exception("a hook for %s failed; the job goes on", moment.name)
            if self._is_worth_an_event(moment):
                self._emit(moment)

    def _is_worth_an_event(self, moment: Moment) -> bool:
        if moment.name in _SAID:
            return False
        if moment.name != "update_received":
            return True
        if (str(moment.detail.get("kind")), moment.round) in self._large:
            return False
        now = time.monotonic()
        earned = (now - self._counted_at) * _UPDATES_A_SECOND
        self._allowance = min(self._allowance + earned, _UPDATES_AT_ONCE)
        self._counted_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _emit(self, moment: Moment) -> None:
        related = [_resource("prefect.flow-run", self._job, self._name, "flow-run")]
        if moment.site:
            related.append(_resource("federated.site", moment.site, moment.site, "site"))
        payload = {"job": self._job, "round": moment.round, **moment.detail}
        try:
            emit_event(
                EVENTS[moment.name],
                resource=_resource("federated.job", self._job, self._name),
                related=related,
                payload=payload if not moment.site else {"site": moment.site, **payload},
            )
        except Exception:  # Prefect's limits on events, for one: no reason to end a job
            self._log.warning("the event of %s was not emitted", moment.name, exc_info=True)


def _resource(kind: str, key: str, name: str, role: str | None = None) -> dict[str, str]:
    resource = {"prefect.resource.id": f"{kind}.{key}", "prefect.resource.name": name}
    return resource if role is None else {**resource, "prefect.resource.role": role}
