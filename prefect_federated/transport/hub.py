"""A job's exchange, made safe for threads: drivers hand over what arrives, a flow makes calls.

The rules are `exchange`'s. Here are the lock, the waiting, and the work on payloads (checks,
filters), which is done outside the lock. What a flow waits on is a `Call`, in `waiting`.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias, cast

from prefect_federated.errors import FederatedError, StaleController
from prefect_federated.filters import rows_of
from prefect_federated.messages import JsonValue, Message, Reply, SiteFailure
from prefect_federated.transport.calls import CallRecord, CallTerms, Task, header_of
from prefect_federated.transport.exchange import Exchange
from prefect_federated.transport.signals import (
    Attachment,
    Hello,
    Moment,
    Refusal,
    SendAck,
    Sink,
    SiteNotes,
)
from prefect_federated.transport.updates import (
    check_finite,
    check_head,
    check_size,
    printable,
    update_of,
)
from prefect_federated.transport.waiting import Call
from prefect_federated.wire import Frame, Incoming, TensorSpec, encode

Entering: TypeAlias = Callable[[str, Message, Message], Message]
"""Site, its message, the header of what it was asked -> the message after filters."""
Announced: TypeAlias = Callable[[Incoming], Mapping[str, TensorSpec]]
"""An update's head -> the tensors that it will have after decoding."""

_LEAST_REPLY_BYTES = 64 << 20  # an answer may be so large, whatever was asked,
_REPLY_FACTOR = 4  # or so many times as large as what was asked

log = logging.getLogger("prefect_federated.endpoint")


class Hub:
    """The attachments and open calls of one attempt (epoch) of one job, for any number of threads.

    Args:
        job: The job's id.
        epoch: This attempt's number, larger than that of any attempt before.
        sites: The sites that may attach.
        clock: Monotonic seconds.
        max_failures: Failures in a row after which a site is left out; None for never.
        updates_in_memory: Updates that may be in memory beside the aggregator's sum.
    """

    def __init__(
        self,
        job: str,
        epoch: int,
        sites: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        max_failures: int | None = None,
        updates_in_memory: int = 2,
    ) -> None:
        self.job = job
        self.epoch = epoch
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.listeners: list[Callable[[Moment], None]] = []
        self.entering: Entering = lambda site, message, asked: message
        self.announced: Announced = lambda incoming: incoming.specs
        self._moments: list[Moment] = []
        self._telling = threading.RLock()
        self._stale: str | None = None
        self._exchange = Exchange(
            job, epoch, sites, clock, max_failures, updates_in_memory, self._moments.append
        )

    @contextmanager
    def turn(self) -> Iterator[Exchange]:
        """Gives the exchange to one thread at a time; wakes who waits, tells the listeners."""
        try:
            with self.changed:
                yield self._exchange
                self.changed.notify_all()
        finally:
            self._tell()

    def _tell(self) -> None:
        with self._telling:  # one thread at a time, so that moments are told in their order
            with self.changed:
                moments, self._moments[:] = list(self._moments), []
            for moment in moments:
                for listener in self.listeners:
                    try:
                        listener(moment)
                    except Exception:  # whoever listens is no part of the round
                        log.exception("a listener to %s failed; the job goes on", moment.name)

    # What drivers call

    def attach(self, hello: Hello, send: Sink) -> Attachment:
        """Lets a site in; see `Exchange.attach`. `send` must not block."""
        with self.turn() as exchange:
            return exchange.attach(hello, send)

    def detach(self, attachment: Attachment) -> None:
        """Notes that a connection is gone; the site's open tasks wait for it to come back."""
        with self.turn() as exchange:
            exchange.detach(attachment)

    def offer(self, attachment: Attachment, incoming: Incoming, at_once: bool) -> bool:
        """Takes the head of an update, before any of its payload is received.

        Args:
            attachment: The site's connection.
            incoming: The update, whose head has arrived.
            at_once: Whether its payload follows without being asked for.

        Returns:
            For `at_once`, whether the payload is wanted; if so, there is a place for it. Otherwise
            False: the site is told to send the payload when there is room.
        """
        task, site = str(incoming.header.get("id")), attachment.site
        error = incoming.header.get("error")
        with self.turn() as exchange:
            asked = exchange.find(attachment, task, is_failure=error is not None)
            if asked is None:
                return False
        reason = None if error is None else printable(str(error))
        if reason is None:
            try:
                check_size(site, asked.terms, incoming)
                if asked.terms.expect is not None:
                    check_head(site, asked.terms, self.announced(incoming))
            except FederatedError as rejected:
                reason = str(rejected)
        with self.turn() as exchange:
            if exchange.find(attachment, task) is not asked:
                return False
            if reason is not None:
                exchange.settle(site, task, SiteFailure(site, reason))
                attachment.send(SendAck(task, None if error is not None else reason))
                return False
            is_too_late = asked.call is None and asked.terms.late == 0  # of a site on trial
            if not at_once or is_too_late:
                exchange.offer(attachment, asked, incoming)
                return False
            incoming.allocate()
            exchange.take_small(asked, incoming)
            return True

    def deliver(self, attachment: Attachment, incoming: Incoming) -> None:
        """Takes an update that has arrived whole, and acknowledges it."""
        task, site = str(incoming.header.get("id")), attachment.site
        with self.turn() as exchange:
            asked = exchange.find(attachment, task)
            if asked is None:
                return
            if asked.incoming is not incoming:
                return  # of an earlier connection: it comes again over this one
            call = asked.call
        reply: Reply
        filtered: list[JsonValue] = []
        blame = True
        try:
            header = Message({}) if call is None else call.task.message
            message = self.entering(site, incoming.message(), header)
            reply = update_of(site, message)
            check_finite(asked.terms.round, reply)
            filtered = [cast(JsonValue, [*row]) for row in rows_of(message.header)]
        except FederatedError as error:
            reply = SiteFailure(site, str(error))
        except Exception as error:  # a filter of the job's own: no fault of the site's
            log.exception("site %s: its update could not be taken", site)
            reply = SiteFailure(site, f"{type(error).__name__} at the server; see its log")
            blame = False
        with self.turn() as exchange:
            if exchange.sites[site].open.get(task) is not asked or asked.incoming is not incoming:
                exchange.find(attachment, task)  # refuses it
                return
            if asked.call is not None:
                report = asked.call.reports[site]
                report.bytes_received += incoming.size_bytes
                report.filtered = filtered
            exchange.settle(site, task, reply, blame)
            rejected = reply.reason if isinstance(reply, SiteFailure) else None
            attachment.send(SendAck(task, rejected))

    def note(self, attachment: Attachment, notes: SiteNotes) -> None:
        """Takes what a site says while it works; nothing, if nobody waits for that task."""
        with self.turn() as exchange:
            exchange.note(attachment, notes)

    def fail(self, site: str, task: str | None, reason: str) -> None:
        """Notes that a site's task failed; with no task, all of its open tasks."""
        with self.turn() as exchange:
            exchange.fail(site, task, reason)

    # What a controller calls

    def call(
        self,
        kind: str,
        message: Message,
        sites: Sequence[str],
        terms: CallTerms,
        trials: Sequence[str] = (),
    ) -> Call:
        """Asks sites for a site task and returns the call, whose replies come as they arrive.

        Args:
            kind: The site task.
            message: What each site gets.
            sites: Sites that are asked, counted and waited for.
            terms: What the call waits for.
            trials: Sites that are left out at present and are asked too; see `trials`.
        """

        if terms.max_reply_bytes is None and message.tensors:
            most = max(_LEAST_REPLY_BYTES, _REPLY_FACTOR * message.size_bytes)
            terms = replace(terms, max_reply_bytes=most)

        def make_task(number: str) -> Task:
            header = header_of(number, kind, self.job, self.epoch, terms, message.header)
            whole = Message(header, message.tensors, message.blobs)
            return Task(encode(Frame.TASK, whole), whole)

        with self.turn() as exchange:
            self.raise_if_stale()
            return Call(self, exchange.call(kind, make_task, sites, terms, trials))

    def first_done(self, calls: Collection[Call], timeout_s: float | None = None) -> list[Call]:
        """Waits until a call has nothing more to wait for; returns those that have not.

        Raises:
            StaleController: a newer attempt of the job has taken over.
        """
        end = None if timeout_s is None else self.clock() + timeout_s
        with self.awaiting([call.record for call in calls]) as exchange:
            while True:
                self.raise_if_stale()
                next_look = exchange.look()
                done = [call for call in calls if exchange.is_done(call.record)]
                if done or (end is not None and self.clock() >= end):
                    return done
                self.wait_until(next_look, end)

    @contextmanager
    def awaiting(self, records: Collection[CallRecord]) -> Iterator[Exchange]:
        """Gives the exchange to one thread, which waits for these calls' replies."""
        with self.turn() as exchange:
            exchange.wait_for(records)
            self.changed.notify_all()
            try:
                yield exchange
            finally:
                exchange.waited(records)

    def wait_until(self, *times: float | None) -> None:
        """Waits, inside `awaiting`, until something has changed, or for the next of these times."""
        next_time = min((time for time in times if time is not None), default=None)
        self._tell_later()
        self.changed.wait(None if next_time is None else max(0.0, next_time - self.clock()))

    def _tell_later(self) -> None:
        """Tells listeners what deadlines have brought, without keeping the others from the lock."""
        if self._moments:
            threading.Thread(target=self._tell, daemon=True).start()

    @property
    def awaited(self) -> Collection[CallRecord]:
        """The calls for whose replies the controller waits now."""
        return self._exchange.deliveries.room.awaited

    def attached(self) -> list[str]:
        """Returns the sites that are connected now."""
        with self.changed:
            return [name for name, site in self._exchange.sites.items() if site.attachment]

    def reachable(self, lost_after_s: float) -> list[str]:
        """Returns the sites that are connected, or were less than `lost_after_s` seconds ago.

        Those that are left out because they failed too often are not among them.
        """
        with self.changed:
            now = self.clock()
            return [
                name
                for name, site in self._exchange.sites.items()
                if site.left_out is None
                and (
                    site.attachment is not None
                    or (
                        site.given_up is None
                        and site.kinds is not None
                        and site.left_at is not None
                        and now - site.left_at < lost_after_s
                    )
                )
            ]

    def trials(self, kind: str) -> list[str]:
        """Returns the sites that are left out and are to be tried again with the next call."""
        with self.changed:
            return self._exchange.roster.trials(kind)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that may attach."""
        return tuple(self._exchange.sites)

    @property
    def round(self) -> int:
        """The round of the newest call."""
        return self._exchange.roster.round

    @property
    def refusals(self) -> list[Refusal]:
        """The newest results that did not count, at most 1,000."""
        with self.changed:
            return list(self._exchange.roster.refusals)

    def admit(self, site: str) -> None:
        """Lets a site take part from now on."""
        with self.turn() as exchange:
            exchange.roster.admit(site)

    def can(self, site: str, kind: str) -> bool:
        """Whether the site can do this kind of site task, or has not been here to say so."""
        kinds = self._exchange.sites[site].kinds
        return kinds is None or kind in kinds

    def labels(self, site: str) -> Mapping[str, str]:
        """Returns what the site says of itself."""
        return self._exchange.sites[site].labels

    def weight(self, site: str) -> float | None:
        """Returns the weight of the site's newest update; None before it has sent one."""
        return self._exchange.sites[site].weight

    @property
    def is_over(self) -> bool:
        """Whether the sites have been told that the job is over."""
        return self._exchange.ended is not None

    def is_attached(self, site: str) -> bool:
        """Whether the site is connected now."""
        return self._exchange.sites[site].attachment is not None

    def given_up(self, site: str) -> str | None:
        """Returns why nobody waits for this site any more, or None."""
        return self._exchange.sites[site].given_up

    def left_out(self, site: str) -> str | None:
        """Returns why this site is left out at present, or None."""
        return self._exchange.sites[site].left_out

    def give_up(self, site: str, reason: str) -> None:
        """Stops waiting for a site until it attaches again: its open tasks fail for this reason."""
        with self.turn() as exchange:
            exchange.give_up(site, reason)

    def end(self, outcome: str, reason: str) -> None:
        """Tells all sites that the job is over, and lets none attach any more."""
        with self.turn() as exchange:
            exchange.end(outcome, reason)

    def close_calls(self, reason: str) -> None:
        """Ends the calls that are still open, so that no site and no observer waits for them."""
        with self.turn() as exchange:
            for call in list(exchange.calls.values()):
                exchange.close(call, reason)

    def interrupt(self, reason: str) -> None:
        """Makes every waiting call raise `StaleController`: a newer attempt has taken over."""
        with self.turn():
            self._stale = reason

    def raise_if_stale(self) -> None:
        """Raises `StaleController` if a newer attempt of the job has taken over."""
        if self._stale is not None:
            raise StaleController(self._stale)
