"""The relay: one site after another, each gets the last one's reply."""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future as Outcome
from concurrent.futures import wait
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from prefect_federated.errors import QuorumNotReached
from prefect_federated.messages import Reply, Tensors, Update
from prefect_federated.tasks.replies import Book, Replies
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.waiting import Call

OnMissing: TypeAlias = Literal["skip", "later", "fail"]

_TRIAL_S = 10.0  # for which a site that is tried again is waited for in any case
_CANCELLED = "the job's flow cancelled the relay"


class Hop(Protocol):
    """Asks one site of a relay."""

    def __call__(self, site: str, model: Tensors | None, timeout_s: float) -> Replies:
        """Asks the site and returns its reply, to be read."""
        ...


@dataclass(frozen=True)
class Course:
    """What a relay does.

    Args:
        what: What it is, for messages: round and site task.
        order: The sites, first to last.
        trials: Sites that are left out and tried again after them: not counted, and not waited for
            longer than twice as long as for the slowest of the others.
        on_missing: A site that does not answer: "skip" goes on with the next, "later" asks it once
            more at the end, "fail" ends the relay.
        quorum: Updates needed: a count (int) or a share of the sites (float).
        timeout_s: Seconds for each site.
    """

    what: str
    order: Sequence[str]
    trials: Sequence[str]
    on_missing: OnMissing
    quorum: int | float
    timeout_s: float


@dataclass(frozen=True)
class Relayed:
    """What a relay gave.

    Args:
        model: The last site's tensors.
        replies: In order; without the tensors, which the next site has got.
    """

    model: Tensors
    replies: Sequence[Reply]


class RelayReplies:
    """The replies of a relay, in its order; read them once.

    A site is asked when the reply of the one before has been read. The end of the reading raises
    `QuorumNotReached` when too few sites answered.
    """

    def __init__(self, course: Course, model: Tensors | None, hop: Hop, book: Book) -> None:
        self.model: Tensors = model or {}
        """What the last site has sent so far."""
        self.report: RoundReport | None = None
        """What became of the relay, once all replies have been read."""
        self._course = course
        self._hop = hop
        self._book = book
        self._calls: list[Call] = []
        self._cancelled = False
        self._is_read = False

    def __iter__(self) -> Iterator[Reply]:
        """Asks one site after the other and yields their replies."""
        if self._is_read:
            raise RuntimeError("the replies of a relay can be read once; keep what you need.")
        self._is_read = True
        return self._reported()

    def _reported(self) -> Iterator[Reply]:
        began_at, is_complete = time.time(), False
        try:
            yield from self._run()
            is_complete = True
        finally:
            if self._calls:
                self.report = self._book.record(self._calls, began_at, is_complete)

    def cancel(self) -> None:
        """Ends the relay: the site that is at work is told that nobody waits for it."""
        self._cancelled = True
        if self._calls:
            self._calls[-1].cancel(_CANCELLED)

    def _run(self) -> Iterator[Reply]:
        course = self._course
        waiting, put_off = deque(course.order), set[str]()
        missing: list[str] = []
        while waiting:
            site = waiting.popleft()
            reply = self._ask(site, course.timeout_s)
            if isinstance(reply, Update):
                self.model = {**self.model, **reply.tensors}  # a filter may keep some at a site
            elif course.on_missing == "fail":
                raise QuorumNotReached(
                    f"{course.what}: the relay ended at site {site!r}, which did not answer: "
                    f"{reply.reason}. To go on without it, set on_missing to 'skip' or 'later'."
                )
            elif course.on_missing == "later" and site not in put_off:
                put_off.add(site)
                waiting.append(site)
                continue
            else:
                missing.append(f"{site}: {reply.reason}")
            yield reply
            del reply
        total = len(course.order)
        needed = CallTerms(quorum=course.quorum).updates_needed(total)
        if total - len(missing) < needed:
            raise QuorumNotReached(
                f"{course.what}: {total - len(missing)} of {total} sites answered, the quorum is "
                f"{needed}. Missing: {'; '.join(missing).rstrip('.')}."
            )

        yield from self._try_again()

    def _try_again(self) -> Iterator[Reply]:
        seconds = [report.seconds for call in self._calls for report in call.reports.values()]
        patience_s = max(_TRIAL_S, 2 * max(seconds))
        for site in self._course.trials:
            reply = self._ask(site, min(patience_s, self._course.timeout_s))
            if not isinstance(reply, Update):
                self._calls.pop()  # it is not counted
                continue
            self.model = {**self.model, **reply.tensors}  # a filter may keep some at a site
            yield reply
            del reply

    def _ask(self, site: str, timeout_s: float) -> Reply:
        """Asks a site and returns its reply.

        Raises:
            QuorumNotReached: the relay has been cancelled.
        """
        replies = self._hop(site, self.model or None, timeout_s)
        self._calls.append(replies.call)
        if self._cancelled:  # in between
            replies.call.cancel(_CANCELLED)
        try:
            reply = next(iter(list(replies)), None)
        except QuorumNotReached:
            if not self._cancelled:
                raise
            reply = None
        if self._cancelled or reply is None:
            raise QuorumNotReached(
                f"{self._course.what}: the relay was cancelled at site {site!r}."
            )
        return reply


class RelayFuture:
    """A relay that goes on by itself, on a thread of its own."""

    def __init__(self, hub: Hub, relay: RelayReplies) -> None:
        self.hub = hub
        self._relay = relay
        self._outcome: Outcome[Relayed] = Outcome()
        context = contextvars.copy_context()  # in which Prefect knows the flow run
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="relay", daemon=True
        )
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the last site has answered, or the relay has failed."""
        return self._outcome.done()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the last site's answer; False if the time (seconds) is too short."""
        return bool(wait([self._outcome], timeout_s).done)

    def result(self) -> Relayed:
        """Waits for the last site's answer and returns what the relay gave.

        Raises:
            QuorumNotReached: too few sites answered, one did not that had to, or it was cancelled.
        """
        return self._outcome.result()

    def cancel(self) -> None:
        """Ends the relay and waits for its thread: the site at work is told so."""
        self._relay.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            replies = [_without_tensors(reply) for reply in self._relay]
        except BaseException as error:  # belongs to whoever asks for the result
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(Relayed(self._relay.model, replies))


def _without_tensors(reply: Reply) -> Reply:
    return replace(reply, tensors={}) if isinstance(reply, Update) else reply
