"""What flows are written with: a federation of sites, and calls to them.

    with federation(job) as fed:
        replies = fed.broadcast("train", model, round=1)       # wait: read them as they arrive
        future = fed.send.submit("evaluate", model, sites="a")  # no-wait: a future
        relayed = fed.relay("train", model, order="shuffled")  # one after another

The same code serves a real federation and the simulator: `federation` finds out which.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from prefect.exceptions import Abort, Pause
from prefect.logging import get_run_logger

from prefect_federated.errors import ConfigurationError, NotEnoughSites, StaleController
from prefect_federated.filters import Filter, FilterSpec, Point
from prefect_federated.settings import Settings
from prefect_federated.tasks.asking import Asker
from prefect_federated.tasks.background import background
from prefect_federated.tasks.deployed import deployed
from prefect_federated.tasks.events import Events, Hooks
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.patterns import Broadcast, Relay, Send
from prefect_federated.tasks.replies import ReplyFuture, first_completed
from prefect_federated.tasks.report import Reporter
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.tasks.server_filters import ServerFilters
from prefect_federated.tasks.simulated import current_simulation, simulated
from prefect_federated.tasks.tracking import Tracking, wanted
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment

__all__ = ["Federation", "current_federation", "federation", "first_completed"]


@dataclass(frozen=True)
class Federation:
    """The sites of one running job, as its flow sees them.

    Args:
        job: The job's parameters.
        hub: Who is attached, who was asked.
        filters: What messages pass at the server.
        reporter: The job's table and artifacts.
        events: Who is told of the job's moments.
    """

    job: JobParameters
    hub: Hub
    filters: ServerFilters
    reporter: Reporter
    events: Events
    broadcast: Broadcast = field(init=False)
    """Asks many sites."""
    send: Send = field(init=False)
    """Asks named sites."""
    relay: Relay = field(init=False)
    """Asks one site after another, each with the last one's reply."""
    asker: Asker = field(init=False, repr=False)

    def __post_init__(self) -> None:
        asker = Asker(self.job, self.hub, self.filters, self.reporter, self.events)
        parts = {
            "asker": asker, "broadcast": Broadcast(asker), "send": Send(asker),
            "relay": Relay(asker),
        }  # fmt: skip
        for name, part in parts.items():
            object.__setattr__(self, name, part)

    @property
    def sites(self) -> list[str]:
        """The sites that are connected now."""
        return self.hub.attached()

    @contextmanager
    def untold(self) -> Iterator[None]:
        """Tells nobody of the updates inside the block, which are of models of single sites."""
        listeners = list(self.hub.listeners)
        self.hub.listeners[:] = [partial(_but_updates, listener) for listener in listeners]
        try:
            yield
        finally:
            self.hub.listeners[:] = listeners

    def can(self, kind: str) -> bool:
        """Whether the executor of a connected site does this kind of site task."""
        return any(self.hub.can(site, kind) for site in self.hub.attached())

    def idle(self, kind: str, at_work: Collection[str] = ()) -> list[str]:
        """Returns the sites that can be given a site task now, at most as many as `in_flight` lets.

        Args:
            kind: The site task.
            at_work: Sites that have one.

        Raises:
            QuorumNotReached: there are neither such sites nor any at work.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        return self.asker.idle(kind, at_work)

    def round_done(self, round: int, futures: Sequence[ReplyFuture]) -> RoundReport:
        """Makes one row of the job's table from several calls that were asked `reported=False`.

        Args:
            round: The round that they make.
            futures: The calls, each of which has been read.
        """
        began_at = min((future.replies.began_at for future in futures), default=time.time())
        calls = [future.replies.call for future in futures]
        return self.asker.record(calls, began_at, round=round)


def _but_updates(listener: Callable[[Moment], None], moment: Moment) -> None:
    if moment.name != "update_received":
        listener(moment)


_current: ContextVar[Federation] = ContextVar("prefect_federated_federation")


def current_federation() -> Federation:
    """Returns the federation of the running flow.

    Raises:
        LookupError: not inside `with federation(...)`.
    """
    return _current.get()


@contextmanager
def federation(
    job: JobParameters,
    *,
    filters: Sequence[FilterSpec] = (),
    functions: Mapping[Point, Sequence[Filter]] | None = None,
    hooks: Hooks | None = None,
) -> Iterator[Federation]:
    """Opens the federation for a job: the sites join, and leave when the block ends.

    Args:
        job: The job's parameters.
        filters: Filters that this kind of job needs; they stand before the job's own.
        functions: Filters that are plain callables, by point; for the server's two points.
        hooks: Functions that are told of the job's moments.

    Raises:
        NotEnoughSites: fewer sites joined within `join_timeout_s` than the job asks for.
        ConfigurationError: the executor or a filter does not import, or this process has no
            startup kit.
    """
    job = job.model_copy(update={"filters": [*filters, *job.filters]})
    server_filters = ServerFilters(job.filters, functions)
    simulation = current_simulation()
    opened = deployed(job) if simulation is None else simulated(job, simulation)
    folder = simulation.tensorboard if simulation is not None else None
    trackers = wanted(folder or Settings().tensorboard, get_run_logger().warning)
    # These three end last: no site waits for the pictures of a job that is over.
    with (
        Tracking(job.model_dump(mode="json"), trackers) as tracking,
        Reporter(getattr(job, "rounds", None)) as reporter,
        Events(hooks or Hooks()) as events,
        _telling_the_end(events) as opens,
        opened as hub,
    ):
        opens(hub)
        fed = Federation(job, hub, server_filters, reporter, events)
        reporter.on_round.append(tracking.round_done)
        reporter.on_resume.append(tracking.resume)
        for listener in (events, reporter, tracking):
            listener.listen_to(hub)
        hub.entering, hub.announced = server_filters.entering, server_filters.announced
        token = _current.set(fed)
        try:
            with background():
                yield fed
            events.aggregated()
        finally:
            fed.asker.close()
            _current.reset(token)


@contextmanager
def _telling_the_end(events: Events) -> Iterator[Callable[[Hub], None]]:
    """Tells the hooks that the job has ended, unless it comes back: a retry, a newer attempt."""
    hubs: list[Hub] = []
    outcome, reason = "completed", "all rounds are done"
    try:
        yield hubs.append
    except BaseException as error:
        told = error.__cause__ if isinstance(error, Abort) and error.__cause__ else error
        outcome = "failed" if isinstance(told, Exception) else "cancelled"
        reason = f"{type(told).__name__}: {told}"
        if isinstance(told, StaleController | Pause):
            hubs = []
        elif not hubs and isinstance(told, ConfigurationError | NotEnoughSites):
            # It ended before its sites were there, and no retry could help.
            events.tell("job_ended", 0, {"outcome": outcome, "reason": reason})
        raise
    finally:
        if hubs and hubs[0].is_over:
            events.tell("job_ended", hubs[0].round, {"outcome": outcome, "reason": reason})
