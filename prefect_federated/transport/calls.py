"""One call of a controller to its sites: its terms, its replies in the order of arrival."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from prefect_federated.errors import QuorumNotReached, UpdateRejected
from prefect_federated.messages import JsonValue, Message, Reply, SiteFailure, Tensor, Update
from prefect_federated.wire import Encoded, TensorSpec

if TYPE_CHECKING:
    from prefect_federated.transport.hub import Hub

_FINITE_BLOCK = 1 << 20
_RECEIVED_AT_ONCE = 2  # updates in memory beside the aggregator's sum; the rest waits at the sites


class Offer(Protocol):
    """An update whose head is known: its announced tensors, then its payload."""

    @property
    def header(self) -> Mapping[str, JsonValue]:
        """The message's header."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each tensor."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of head and payload."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether all of the payload has been read."""
        ...

    def allocate(self) -> None:
        """Makes room for the payload."""
        ...

    def discard(self) -> None:
        """Reads the payload without keeping it."""
        ...

    def message(self) -> Message:
        """Returns the complete message."""
        ...


@dataclass(frozen=True, slots=True)
class CallTerms:
    """What a call waits for.

    Args:
        round: The round, counted from 1; 0 outside rounds.
        quorum: Updates needed: a count (int) or a share of the sites asked (float, 0 to 1, rounded
            up).
        timeout_s: Seconds after which sites that have not answered count as failed.
        lost_after_s: Seconds without a connection after which a site counts as failed.
        expect: Dtype and shape of each tensor that an update must have; None for any.
    """

    round: int = 0
    quorum: int | float = 1.0
    timeout_s: float = 600.0
    lost_after_s: float = 30.0
    expect: dict[str, TensorSpec] | None = None

    def updates_needed(self, asked: int) -> int:
        """Returns the number of updates that make the quorum among `asked` sites."""
        if isinstance(self.quorum, float):
            return max(1, math.ceil(round(self.quorum * asked, 9)))
        return self.quorum


@dataclass(slots=True)
class SiteReport:
    """What became of one site in one call, for reports."""

    site: str
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    reason: str | None = None
    metrics: dict[str, float] | None = None
    metrics_weight: float = 0.0


class Call:
    """A call in flight: iterate it for updates and failures in the order of arrival.

    The end of the iteration closes the call. It raises `QuorumNotReached` when too few sites sent
    an update.
    """

    def __init__(
        self,
        hub: "Hub",
        number: str,
        kind: str,
        task: Encoded,
        message: Message,
        sites: Sequence[str],
        terms: CallTerms,
    ) -> None:
        self.id = number
        self.kind = kind
        self.task = task
        self.message = message
        self.sites = tuple(sites)
        self.terms = terms
        self.started = hub.clock()
        self.reports = {site: SiteReport(site) for site in sites}
        self._hub = hub
        self._arrived: deque[Reply] = deque()
        self._waiting = set(sites)
        self._room = _RECEIVED_AT_ONCE
        self._closed = False
        self._iterated = False

    # What the hub calls, holding its lock except where it says

    def count_sent(self, site: str) -> None:
        """Notes that the task is on its way to a site."""
        self.reports[site].bytes_sent += self.task.size_bytes

    def accept(self, site: str, update: Update, size_bytes: int) -> None:
        """Takes a site's update."""
        report = self.reports[site]
        report.bytes_received += size_bytes
        report.metrics = dict(update.metrics)
        weight = update.metrics_weight
        report.metrics_weight = update.weight if weight is None else weight
        self._settle(site, update)

    def fail(self, site: str, reason: str) -> None:
        """Takes a site's failure."""
        self.reports[site].reason = reason
        self._settle(site, SiteFailure(site, reason))

    def _settle(self, site: str, reply: Reply) -> None:
        self._waiting.discard(site)
        self.reports[site].seconds = self._hub.clock() - self.started
        self._arrived.append(reply)

    def make_room(self, site: str) -> bool:
        """Waits, without the hub's lock, until an update may be received; False if too late.

        There is always room while the controller waits for another call: otherwise a site whose
        update waits here could not answer that one.
        """
        with self._hub.changed:
            self._hub.held_back += 1
            while site in self._waiting and not self._closed and self._room <= 0:
                if self._hub.awaited not in (None, self):
                    break
                self._hub.changed.wait()
            self._hub.held_back -= 1
            if site not in self._waiting or self._closed:
                return False
            self._room -= 1
            return True

    def free_room(self) -> None:
        """Lets the next update in: one was consumed, or did not come through."""
        with self._hub.changed:
            self._room += 1
            self._hub.changed.notify_all()

    def check_head(self, site: str, offer: Offer) -> None:
        """Compares an update's announced tensors with those expected, before any is received.

        Raises:
            UpdateRejected: names, shapes or dtypes differ.
        """
        expected = self.terms.expect
        if expected is None:
            return
        where = f"round {self.terms.round}, site {site!r}"
        odd = sorted(expected.keys() ^ offer.specs.keys())
        if odd:
            side = "lacks" if odd[0] in expected else "has the unknown"
            raise UpdateRejected(
                f"{where}: the update {side} tensor {odd[0]!r} ({len(odd)} such). Send every "
                "tensor of the model, and no other."
            )
        for name, spec in expected.items():
            got = offer.specs[name]
            if got != spec:
                raise UpdateRejected(
                    f"{where}: tensor {name!r} is {got.dtype} {got.shape}, the global model has "
                    f"{spec.dtype} {spec.shape}. Send every tensor in the model's own shape."
                )

    def check_update(self, update: Update) -> None:
        """Raises `UpdateRejected` if a tensor holds a value that is not finite."""
        for name, array in update.tensors.items():
            if np.issubdtype(array.dtype, np.inexact) and not _is_finite(array):
                raise UpdateRejected(
                    f"round {self.terms.round}, site {update.site!r}: tensor {name!r} holds NaN or "
                    "infinity. Look for a diverging loss there, or lower its learning rate."
                )

    # What the controller calls

    def __iter__(self) -> Iterator[Reply]:
        """Yields updates and failures as they arrive, each once; closes the call at the end."""
        if self._iterated:
            raise RuntimeError("the replies of a call can be read once; keep what you need.")
        self._iterated = True
        return self._replies()

    def _replies(self) -> Iterator[Reply]:
        try:
            while (reply := self._next()) is not None:
                is_update = isinstance(reply, Update)
                yield reply
                del reply
                if is_update:
                    self.free_room()
        finally:
            self.close("the call was closed before it answered")
        self._check_quorum()

    def wait_site(self, site: str) -> SiteReport:
        """Waits until a site has answered or counts as failed, and returns what became of it."""
        with self._hub.changed:
            while site in self._waiting and not self._closed:
                self._hub.changed.wait()
            return self.reports[site]

    def _next(self) -> Reply | None:
        with self._hub.changed:
            while True:
                self._hub.raise_if_stale()
                if self._arrived:
                    return self._arrived.popleft()
                if not self._waiting:
                    return None
                now = self._hub.clock()
                overdue, next_look = self._overdue(now)
                if overdue:
                    self._hub.close_call(self, overdue)
                else:
                    self._wait(next_look - now)

    def _wait(self, seconds: float) -> None:
        self._hub.awaited = self
        if self._hub.held_back:
            self._hub.changed.notify_all()
        try:
            self._hub.changed.wait(seconds)
        finally:
            self._hub.awaited = None

    def _overdue(self, now: float) -> tuple[dict[str, str], float]:
        """Returns the waiting sites whose time is over, with reasons, and when to look again."""
        deadline = self.started + self.terms.timeout_s
        overdue, next_look = {}, deadline
        for site in self._waiting:
            left_at = self._hub.absent_since(site)
            reason = self._hub.given_up(site)
            if reason is not None:
                overdue[site] = reason
            elif now >= deadline:
                overdue[site] = f"no answer within {self.terms.timeout_s:g} s"
            elif left_at is not None:
                lost_at = max(left_at, self.started) + self.terms.lost_after_s
                next_look = min(next_look, lost_at)
                if now >= lost_at:
                    overdue[site] = f"no connection for {self.terms.lost_after_s:g} s"
        return overdue, next_look

    def close(self, reason: str) -> None:
        """Ends the call: sites that have not answered count as failed, with this reason."""
        with self._hub.changed:
            self._closed = True
            self._hub.close_call(self, dict.fromkeys(self._waiting, reason))
            self._arrived.clear()
            self.message = Message({})
            self.task = Encoded(self.task.head, ())
            self._hub.changed.notify_all()

    def _check_quorum(self) -> None:
        failed = [report for report in self.reports.values() if report.reason is not None]
        answered = len(self.sites) - len(failed)
        needed = self.terms.updates_needed(len(self.sites))
        if answered < needed:
            reasons = "; ".join(f"{report.site}: {report.reason}" for report in failed)
            raise QuorumNotReached(
                f"round {self.terms.round}, {self.kind}: {answered} of {len(self.sites)} sites "
                f"answered, the quorum is {needed}. Missing: {reasons.rstrip('.')}."
            )


def _is_finite(array: Tensor) -> bool:
    flat = array.reshape(-1)
    return all(
        bool(np.isfinite(flat[start : start + _FINITE_BLOCK]).all())
        for start in range(0, flat.size, _FINITE_BLOCK)
    )
