"""What a call gives back: replies to read as they arrive, or a future for later."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from prefect_federated.messages import Reply
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.waiting import Call

_MIXED_LOOK_S = 0.05


class Book(Protocol):
    """Where a call that has been read is reported."""

    def record(self, calls: Sequence[Call], began_at: float, is_complete: bool) -> RoundReport:
        """Makes a row of the job's table from one or more calls."""
        ...


class Replies:
    """The replies to one call, in the order of arrival; read them once.

    Yields an `Update` for each site that answered and a `SiteFailure` for each that did not. The
    end of the reading raises `QuorumNotReached` when too few sites answered.
    """

    def __init__(
        self, call: Call, observers: Sequence[PrefectFuture[State[None]]], book: Book | None
    ) -> None:
        self.call = call
        self.began_at = time.time()
        self.report: RoundReport | None = None
        """What became of the call, once all replies have been read."""
        self._observers = observers
        self._book = book

    def __iter__(self) -> Iterator[Reply]:
        """Yields the replies as they arrive."""
        return self._read(iter(self.call))

    def _read(self, replies: Iterator[Reply]) -> Iterator[Reply]:
        is_complete = False
        try:
            yield from replies
            is_complete = True
        finally:
            for observer in self._observers:
                observer.wait()
            if self._book is not None:
                self.report = self._book.record([self.call], self.began_at, is_complete)


class ReplyFuture:
    """The replies to a call that nobody waits for yet."""

    def __init__(self, hub: Hub, replies: Replies) -> None:
        self.replies = replies
        """To be read as they arrive, instead of `result`."""
        self.hub = hub
        self._collected: list[Reply] | None = None
        self._error: Exception | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were asked."""
        return self.replies.call.sites

    @property
    def round(self) -> int:
        """The round in which they were asked; 0 outside rounds."""
        return self.replies.call.terms.round

    @property
    def is_done(self) -> bool:
        """Whether all sites have answered, or count as failed."""
        return self.replies.call.is_done

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until all sites have answered or count as failed; False if the time is too short.

        Args:
            timeout_s: Seconds to wait at most; None for as long as the call's own terms say.
        """
        return self.replies.call.wait(timeout_s)

    def result(self) -> list[Reply]:
        """Waits for all replies and returns them; they are in memory together.

        Asked again, it gives the same replies, or raises the same error.

        Raises:
            QuorumNotReached: too few sites answered, or the call was cancelled before this.
        """
        if self._error is not None:
            raise self._error
        if self._collected is None:
            try:
                self._collected = list(self.replies)
            except Exception as error:
                self._error = error
                raise
        return self._collected

    def cancel(self) -> None:
        """Ends the call: the sites are told that nobody waits for their answer any more."""
        self.replies.call.cancel("the job's flow cancelled the call")


class Future(Protocol):
    """What `submit` returns: `ReplyFuture` for broadcast and send, `RelayFuture` for a relay."""

    @property
    def hub(self) -> Hub:
        """The hub of its federation."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for its result; False if the time is too short."""
        ...


AnyFuture = TypeVar("AnyFuture", bound=Future)


def first_completed(
    futures: Iterable[AnyFuture], timeout_s: float | None = None
) -> tuple[list[AnyFuture], list[AnyFuture]]:
    """Waits until at least one future is done; returns those that are, and those that are not.

    Args:
        futures: What `submit` has returned.
        timeout_s: Seconds to wait at most; then none may be done.
    """
    waiting = list(futures)
    if waiting:
        _wait_for_one(waiting, timeout_s)
    done = [future for future in waiting if future.is_done]
    return done, [future for future in waiting if future not in done]


def _wait_for_one(futures: Collection[Future], timeout_s: float | None) -> None:
    calls = [future.replies.call for future in futures if isinstance(future, ReplyFuture)]
    hub = next(iter(futures)).hub
    if len(calls) == len(futures):
        hub.first_done(calls, timeout_s)
        return
    end = None if timeout_s is None else hub.clock() + timeout_s
    while not any(future.is_done for future in futures) and (end is None or hub.clock() < end):
        if calls:  # their deadlines are applied by who waits for them
            hub.first_done(calls, _MIXED_LOOK_S)
        else:
            next(iter(futures)).wait(_MIXED_LOOK_S)
