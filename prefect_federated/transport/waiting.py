"""A call that a flow waits for: its replies as they arrive, whether it is done, its end."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prefect_federated.messages import Reply, Update
from prefect_federated.transport.calls import CallRecord, CallTerms, SiteReport

if TYPE_CHECKING:
    from prefect_federated.transport.hub import Hub


class Call:
    """A call in flight: iterate it for updates and failures in the order of arrival.

    The end of the iteration closes the call. It raises `QuorumNotReached` when too few sites sent
    an update.
    """

    def __init__(self, hub: "Hub", record: CallRecord) -> None:
        self.record = record
        self.hub = hub
        self._is_read = False

    @property
    def id(self) -> str:
        """The id of its site tasks."""
        return self.record.id

    @property
    def kind(self) -> str:
        """The site task."""
        return self.record.kind

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are counted and waited for."""
        return self.record.sites

    @property
    def terms(self) -> CallTerms:
        """What it waits for."""
        return self.record.terms

    @property
    def reports(self) -> Mapping[str, SiteReport]:
        """What became of each site so far, those on trial included."""
        return self.record.reports

    @property
    def seconds(self) -> float:
        """Seconds since the call began."""
        return self.hub.clock() - self.record.started

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be waited for: all sites have answered, or offer to."""
        with self.hub.turn() as exchange:
            return exchange.is_done(self.record)

    @property
    def is_awaited(self) -> bool:
        """Whether the controller waits for this call now."""
        with self.hub.changed:
            return self.record in self.hub.awaited

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing more is to be waited for; False if the time was too short."""
        return bool(self.hub.first_done([self], timeout_s))

    def cancel(self, reason: str = "the call was cancelled") -> None:
        """Ends the call: its sites are told so, and whoever reads it gets `QuorumNotReached`."""
        with self.hub.turn() as exchange:
            if not self.record.is_closed:
                self.record.cancelled = reason
            exchange.close(self.record, reason)

    def wait_site(self, site: str) -> SiteReport:
        """Waits until a site has answered or counts as failed, and returns what became of it."""
        with self.hub.changed:
            while site in self.record.waiting and not self.record.is_closed:
                self.hub.changed.wait()
            return self.record.reports[site]

    def __iter__(self) -> Iterator[Reply]:
        """Yields updates and failures as they arrive, each once; closes the call at the end."""
        if self._is_read:
            raise RuntimeError("the replies of a call can be read once; keep what you need.")
        self._is_read = True
        return self._replies()

    def _replies(self) -> Iterator[Reply]:
        try:
            while (reply := self._next()) is not None:
                site, is_update = reply.site, isinstance(reply, Update)
                yield reply
                del reply
                if is_update:
                    with self.hub.turn() as exchange:
                        exchange.consumed(self.record, site)
        finally:
            with self.hub.turn() as exchange:
                exchange.close(self.record, "the call was closed before it answered")
        self.record.check_quorum()

    def _next(self) -> Reply | None:
        hub = self.hub
        with hub.awaiting([self.record]) as exchange:
            while True:
                hub.raise_if_stale()
                next_look = exchange.look()
                reply = exchange.next_reply(self.record)
                if reply is not None or not self.record.waiting:
                    return reply
                hub.wait_until(next_look)
