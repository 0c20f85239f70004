"""What flows are written with: a federation of sites, and calls to them.

    with federation(job) as fed:
        replies = fed.broadcast("train", model, round=1)       # wait: read them as they arrive
        future = fed.broadcast.submit("evaluate", model)       # no-wait: a future

The same code serves a real federation and the simulator: `federation` finds out which.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from prefect_federated.errors import ConfigurationError, ExecutorNotFound, QuorumNotReached
from prefect_federated.messages import JsonValue, Message, Reply, Tensors
from prefect_federated.tasks.deployed import deployed
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.report import Reporter, RoundReport
from prefect_federated.tasks.simulated import current_simulation, simulated
from prefect_federated.tasks.site_tasks import observe
from prefect_federated.transport.calls import Call, CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.wire import specs_of


class Replies:
    """The replies to one call, in the order of arrival; read them once.

    Yields an `Update` for each site that answered and a `SiteFailure` for each that did not. The
    end of the reading raises `QuorumNotReached` when too few sites answered.
    """

    def __init__(
        self, call: Call, observers: Sequence[PrefectFuture[State[None]]], reporter: Reporter
    ) -> None:
        self._call = call
        self._observers = observers
        self._reporter = reporter
        self._began_at = time.time()

    def __iter__(self) -> Iterator[Reply]:
        """Yields the replies as they arrive."""
        return self._read(iter(self._call))

    def _read(self, replies: Iterator[Reply]) -> Iterator[Reply]:
        try:
            yield from replies
        finally:
            for observer in self._observers:
                observer.wait()
            self._reporter.round_done(RoundReport.of(self._call, self._began_at))


@dataclass(frozen=True)
class ReplyFuture:
    """The replies to a call that nobody waits for yet."""

    replies: Replies

    def result(self) -> list[Reply]:
        """Waits for all replies and returns them.

        Raises:
            QuorumNotReached: too few sites answered.
        """
        return list(self._collected)

    @cached_property
    def _collected(self) -> list[Reply]:
        return list(self.replies)


class Broadcast:
    """Asks many sites for the same site task."""

    def __init__(self, job: JobParameters, hub: Hub, reporter: Reporter) -> None:
        self._job = job
        self._hub = hub
        self._reporter = reporter

    def __call__(
        self,
        kind: str,
        model: Tensors | None = None,
        *,
        round: int = 0,
        sites: Sequence[str] | None = None,
        quorum: int | float | None = None,
        timeout_s: float | None = None,
        config: Mapping[str, JsonValue] | None = None,
        same_tensors: bool | None = None,
    ) -> Replies:
        """Asks the sites and returns their replies, to be read as they arrive.

        Args:
            kind: The site task, such as "train"; the executor's function of that name does it.
            model: Tensors that go to each site.
            round: The round, counted from 1; 0 outside rounds.
            sites: Sites to ask; if None, those that are connected now or were a moment ago.
            quorum: Updates needed: a count, or a share of the sites asked; the job's if None.
            timeout_s: Seconds after which sites that have not answered count as failed.
            config: Settings for the executor, over the job's own.
            same_tensors: Whether updates must have the model's own names, shapes and dtypes; for
                None, they must when `kind` is "train".

        Raises:
            QuorumNotReached: no site is connected.
            ConfigurationError: a site that is not one of the job's.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        lost_after_s = self._job.lost_after_s
        asked = list(sites) if sites is not None else self._hub.reachable(lost_after_s)
        unknown = sorted(set(asked) - set(self._hub.sites))
        if unknown:
            raise ConfigurationError(
                f"{kind} was asked of the sites {', '.join(unknown)}, which do not take part in "
                f"this job. Its sites are: {', '.join(self._hub.sites)}."
            )
        able = [site for site in asked if self._hub.can(site, kind)]
        if asked and not able:
            raise ExecutorNotFound(
                f"executor {self._job.executor!r} does no site task {kind!r} at "
                f"{', '.join(asked)}. Define `@executor def {kind}(model, site)` there."
            )
        if not able:
            raise QuorumNotReached(
                f"round {round}, {kind}: no site is connected. Look at the sites' runs "
                "(join/<site>) in the Prefect UI for why they left."
            )
        expected = kind == "train" if same_tensors is None else same_tensors
        terms = CallTerms(
            round=round,
            quorum=self._job.quorum if quorum is None else quorum,
            timeout_s=self._job.round_timeout_s if timeout_s is None else timeout_s,
            lost_after_s=lost_after_s,
            expect=specs_of(model) if expected and model is not None else None,
        )
        message = Message({"config": dict(config or {})}, model or {})
        call = self._hub.call(kind, message, able, terms)
        return Replies(call, observe(call), self._reporter)

    def submit(self, kind: str, model: Tensors | None = None, **terms: object) -> ReplyFuture:
        """Asks the sites as `__call__` does and returns a future."""
        return ReplyFuture(self(kind, model, **terms))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Federation:
    """The sites of one running job, as its flow sees them."""

    job: JobParameters
    hub: Hub
    reporter: Reporter
    broadcast: Broadcast = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "broadcast", Broadcast(self.job, self.hub, self.reporter))

    @property
    def sites(self) -> list[str]:
        """The sites that are connected now."""
        return self.hub.attached()

    def can(self, kind: str) -> bool:
        """Whether the executor of a connected site does this kind of site task."""
        return any(self.hub.can(site, kind) for site in self.hub.attached())


_current: ContextVar[Federation] = ContextVar("prefect_federated_federation")


def current_federation() -> Federation:
    """Returns the federation of the running flow.

    Raises:
        LookupError: not inside `with federation(...)`.
    """
    return _current.get()


@contextmanager
def federation(job: JobParameters) -> Iterator[Federation]:
    """Opens the federation for a job: the sites join, and leave when the block ends.

    Raises:
        NotEnoughSites: fewer sites joined within `join_timeout_s` than the job asks for.
        ConfigurationError: the executor does not import, or this process has no startup kit.
    """
    simulation = current_simulation()
    opened = deployed(job) if simulation is None else simulated(job, simulation)
    # The reporter ends last: no site waits for the pictures of a job that is over.
    with Reporter(getattr(job, "rounds", None)) as reporter, opened as hub:
        fed = Federation(job, hub, reporter)
        token = _current.set(fed)
        try:
            yield fed
        finally:
            hub.close_calls("the job's flow ended without reading the answer")
            _current.reset(token)
