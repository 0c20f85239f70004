"""The controller's side of a job's connections: who is attached, who was asked, who answered.

The hub knows no sockets and no Prefect. A driver (`grpc_server`, `inproc`) attaches sites to it and
hands over what they send; a flow asks for calls and reads their replies. The clock is handed in.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from prefect_federated.errors import AttachRefused, JobEnded, StaleController, UpdateRejected
from prefect_federated.messages import JsonValue, Message
from prefect_federated.transport.calls import Call, CallTerms, Offer
from prefect_federated.transport.updates import printable, update_of
from prefect_federated.wire import PROTOCOL_VERSION, Encoded, Frame, encode


@dataclass(frozen=True, slots=True)
class Hello:
    """How a site introduces itself when it attaches.

    Args:
        site: Its name.
        protocol: Its protocol version.
        epoch: The highest epoch of this job that it has seen, 0 at first.
        holding: Ids of site tasks that it works on or whose update it keeps.
        kinds: Kinds of site task that it can do.
    """

    site: str
    kinds: tuple[str, ...]
    protocol: int = PROTOCOL_VERSION
    epoch: int = 0
    holding: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SendTask:
    """Send this site task."""

    id: str
    task: Encoded
    message: Message


@dataclass(frozen=True, slots=True)
class SendAck:
    """Tell the site that its update has arrived, or why it does not count."""

    id: str
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class SendClose:
    """Tell the site that nobody waits for this task any more."""

    id: str


@dataclass(frozen=True, slots=True)
class SendEnd:
    """Tell the site that the job is over, or (outcome "refused") that it is not welcome."""

    outcome: str
    reason: str


Outgoing: TypeAlias = SendTask | SendAck | SendClose | SendEnd
Sink: TypeAlias = Callable[[Outgoing], None]


@dataclass(eq=False)
class Attachment:
    """One connection of one site, from its hello until it breaks."""

    site: str
    send: Sink
    epoch: int
    wanted: tuple[str, ...] = ()


@dataclass
class _Site:
    attachment: Attachment | None = None
    left_at: float | None = None
    given_up: str | None = None
    kinds: tuple[str, ...] | None = None  # unknown until it attaches for the first time
    open: dict[str, Call] = field(default_factory=dict)


class Hub:
    """Keeps the sites' attachments and the open calls of one attempt (epoch) of one job.

    Args:
        job: The job's id.
        epoch: This attempt's number, larger than that of any attempt before.
        sites: The sites that may attach.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        job: str,
        epoch: int,
        sites: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.epoch = epoch
        self.sites = tuple(sites)
        self.round = 0
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self._sites = {name: _Site(left_at=clock()) for name in sites}
        self.awaited: Call | None = None  # the call whose next reply the controller waits for
        self.held_back = 0  # updates that wait for room
        self._calls = 0
        self._ended: SendEnd | None = None
        self._stale: str | None = None

    # What drivers call

    def attach(self, hello: Hello, send: Sink) -> Attachment:
        """Lets a site in and gives it its open tasks, except those that it says it holds.

        A second attachment of a site replaces the first. `send` must not block.

        Raises:
            AttachRefused: not a site of this job, or another protocol version.
            JobEnded: the job is over.
            StaleController: the site has seen a newer attempt of the job.
        """
        with self.changed:
            site = self._sites.get(hello.site)
            if site is None:
                raise AttachRefused(
                    f"site {hello.site!r} is not one of this job's sites "
                    f"({', '.join(self._sites)})."
                )
            if hello.protocol != PROTOCOL_VERSION:
                older = "site" if hello.protocol < PROTOCOL_VERSION else "server"
                raise AttachRefused(
                    f"site {hello.site!r} speaks protocol version {hello.protocol}, the server "
                    f"{PROTOCOL_VERSION}; upgrade prefect-federated at the {older}."
                )
            if hello.epoch > self.epoch:
                # A site's word alone stops no job: Prefect knows which attempt is the newest.
                raise StaleController(
                    f"site {hello.site!r} has seen attempt {hello.epoch} of job {self.job}; this "
                    f"is attempt {self.epoch}."
                )
            if self._ended is not None:
                raise JobEnded(self._ended.outcome, self._ended.reason)
            if site.attachment is not None:
                site.attachment.send(SendEnd("replaced", "the site has attached again"))
            wanted = tuple(task for task in hello.holding if task in site.open)
            site.attachment = Attachment(hello.site, send, self.epoch, wanted)
            site.left_at, site.given_up, site.kinds = None, None, hello.kinds
            for task, call in site.open.items():
                if task not in wanted:
                    self._send_task(site.attachment, task, call)
            self.changed.notify_all()
            return site.attachment

    def detach(self, attachment: Attachment) -> None:
        """Notes that a connection is gone; the site's open tasks wait for it to come back."""
        with self.changed:
            site = self._sites[attachment.site]
            if site.attachment is attachment:
                site.attachment, site.left_at = None, self.clock()
                self.changed.notify_all()

    def receive(self, attachment: Attachment, offer: Offer, fill: Callable[[], None]) -> None:
        """Takes an update whose head has arrived, and acknowledges it.

        Waits for room, so that only a few updates are in memory at once; checks the head before
        room is made for the payload; `fill` then reads the payload. An update that nobody waits
        for, that came twice or that does not fit is read and dropped, and the site is told why.
        """
        site, task = attachment.site, str(offer.header.get("id"))
        if offer.header.get("error") is not None:
            self.fail(site, task, printable(str(offer.header["error"])))
            if not offer.is_complete:
                offer.discard()
                fill()
            attachment.send(SendAck(task))
            return
        with self.changed:
            call = self._sites[site].open.get(task)
        if call is None or not call.make_room(site):
            offer.discard()
            fill()
            attachment.send(SendAck(task, "nobody waits for this task any more"))
            return
        accepted, rejected = False, None
        try:
            call.check_head(site, offer)
            offer.allocate()
            fill()
            update = update_of(site, offer.message())
            call.check_update(update)
            accepted = self._settle(site, task, lambda: call.accept(site, update, offer.size_bytes))
        except UpdateRejected as error:
            rejected = str(error)
            self.fail(site, task, rejected)
            if not offer.is_complete:
                offer.discard()
                fill()
        finally:
            if not accepted:
                call.free_room()
        attachment.send(SendAck(task, rejected))

    def fail(self, site: str, task: str | None, reason: str) -> None:
        """Notes that a site's task failed; with no task, all of its open tasks."""
        with self.changed:
            for name in [task] if task is not None else list(self._sites[site].open):
                call = self._sites[site].open.get(name)
                if call is not None:
                    self._settle(site, name, partial(call.fail, site, reason))

    # What a controller calls

    def call(
        self,
        kind: str,
        message: Message,
        sites: Sequence[str],
        terms: CallTerms,
    ) -> Call:
        """Asks sites for a site task and returns the call, whose replies come as they arrive."""
        with self.changed:
            self.raise_if_stale()
            self._calls += 1
            self.round = terms.round or self.round
            number = f"{self.epoch}.{self._calls}"
            header: dict[str, JsonValue] = {
                **message.header, "id": number, "kind": kind, "job": self.job,
                "epoch": self.epoch, "round": terms.round,
            }  # fmt: skip
            task = encode(Frame.TASK, Message(header, message.tensors, message.blobs))
            asked = tuple(dict.fromkeys(sites))
            call = Call(self, number, kind, task, Message(header, message.tensors), asked, terms)
            for name in asked:
                site = self._sites[name]
                site.open[number] = call
                if site.attachment is not None:
                    self._send_task(site.attachment, number, call)
            return call

    def attached(self) -> list[str]:
        """Returns the sites that are connected now."""
        with self.changed:
            return [name for name, site in self._sites.items() if site.attachment is not None]

    def reachable(self, lost_after_s: float) -> list[str]:
        """Returns the sites that are connected, or were less than `lost_after_s` seconds ago."""
        with self.changed:
            now = self.clock()
            return [
                name
                for name, site in self._sites.items()
                if site.attachment is not None
                or (
                    site.given_up is None
                    and site.kinds is not None
                    and site.left_at is not None
                    and now - site.left_at < lost_after_s
                )
            ]

    def can(self, site: str, kind: str) -> bool:
        """Whether the site can do this kind of site task, or has not been here to say so."""
        kinds = self._sites[site].kinds
        return kinds is None or kind in kinds

    @property
    def is_over(self) -> bool:
        """Whether the sites have been told that the job is over."""
        return self._ended is not None

    def absent_since(self, site: str) -> float | None:
        """Returns since when (clock) a site has not been attached; None if it is."""
        return self._sites[site].left_at

    def is_attached(self, site: str) -> bool:
        """Whether the site is connected now."""
        return self._sites[site].attachment is not None

    def given_up(self, site: str) -> str | None:
        """Returns why nobody waits for this site any more, or None."""
        return self._sites[site].given_up

    def give_up(self, site: str, reason: str) -> None:
        """Stops waiting for a site until it attaches again: its open tasks fail for this reason."""
        with self.changed:
            self._sites[site].given_up = reason
            self.fail(site, None, reason)
            self.changed.notify_all()

    def end(self, outcome: str, reason: str) -> None:
        """Tells all sites that the job is over, and lets none attach any more."""
        with self.changed:
            if self._ended is not None:
                return
            self._ended = SendEnd(outcome, reason)
            for site in self._sites.values():
                if site.attachment is not None:
                    site.attachment.send(self._ended)
            self.changed.notify_all()

    def close_calls(self, reason: str) -> None:
        """Ends the calls that are still open, so that no site and no observer waits for them."""
        with self.changed:
            for call in {call for site in self._sites.values() for call in site.open.values()}:
                call.close(reason)

    def interrupt(self, reason: str) -> None:
        """Makes every waiting call raise `StaleController`: a newer attempt has taken over."""
        with self.changed:
            self._stale = reason
            self.changed.notify_all()

    def raise_if_stale(self) -> None:
        """Raises `StaleController` if a newer attempt of the job has taken over."""
        if self._stale is not None:
            raise StaleController(self._stale)

    # Inside

    def _send_task(self, attachment: Attachment, task: str, call: Call) -> None:
        call.count_sent(attachment.site)
        attachment.send(SendTask(task, call.task, call.message))

    def _settle(self, site: str, task: str, settle: Callable[[], None]) -> bool:
        with self.changed:
            if self._sites[site].open.pop(task, None) is None:
                return False
            settle()
            self.changed.notify_all()
            return True

    def close_call(self, call: Call, sites: Mapping[str, str]) -> None:
        """Ends a call: the sites named, each with a reason, count as failed and need not answer."""
        with self.changed:
            for name, reason in sites.items():
                self._settle(name, call.id, partial(call.fail, name, reason))
                attachment = self._sites[name].attachment
                if attachment is not None:
                    attachment.send(SendClose(call.id))
