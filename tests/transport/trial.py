"""A hub under a clock of the test's, and sites that the test speaks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefect_federated.messages import JsonValue, Message, Tensors, Update
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import (
    Attachment,
    Hello,
    Outgoing,
    SendAck,
    SendClose,
    SendEnd,
    SendGo,
    SendNotice,
    SendTask,
)
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.transport.waiting import Call
from prefect_federated.wire import Frame, Incoming, begin, encode, specs_of

Item = TypeVar("Item", SendTask, SendGo, SendAck, SendClose, SendNotice, SendEnd)


@dataclass
class Clock:
    """Monotonic seconds that pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Peer:
    """One site as the hub meets it: what it was sent, and how it answers."""

    hub: Hub
    name: str
    inbox: list[Outgoing] = field(default_factory=list)
    attachment: Attachment | None = None

    def attach(
        self,
        *,
        epoch: int = 0,
        holding: tuple[str, ...] = (),
        receiving: Mapping[str, int] | None = None,
    ) -> "Peer":
        hello = Hello(
            self.name, ("train", "evaluate"), epoch=epoch, holding=holding,
            receiving=receiving or {},
        )  # fmt: skip
        self.attachment = self.hub.attach(hello, self.inbox.append)
        return self

    def detach(self) -> None:
        assert self.attachment is not None
        self.hub.detach(self.attachment)

    def got(self, kind: type[Item]) -> list[Item]:
        return [item for item in self.inbox if isinstance(item, kind)]

    def reply(self, call: Call, tensors: Tensors | None = None, **more: float) -> str | None:
        """Sends an update; returns why it was not taken, or None."""
        return self.send(message_of(call.id, Update(tensors or {}, **more)))  # type: ignore[arg-type]

    def fail(self, call: Call, error: BaseException) -> None:
        self.send(failure_of(call.id, error))

    def send(self, message: Message) -> str | None:
        """Sends any message unasked, as small ones are; returns why it was not taken, or None."""
        assert self.attachment is not None
        incoming, payload = _on_the_way(Frame.UPDATE, message)
        if self.hub.offer(self.attachment, incoming, at_once=True):
            fill(incoming, payload)
            self.hub.deliver(self.attachment, incoming)
        return self.got(SendAck)[-1].rejected

    def offer(self, call: Call, tensors: Tensors, **more: float) -> "Offered":
        """Offers an update, whose payload goes only when there is room."""
        assert self.attachment is not None
        message = message_of(call.id, Update(tensors, **more))  # type: ignore[arg-type]
        incoming, payload = _on_the_way(Frame.OFFER, message)
        assert not self.hub.offer(self.attachment, incoming, at_once=False)
        return Offered(self, call.id, payload)


@dataclass
class Offered:
    """An update that a peer has offered."""

    peer: Peer
    task: str
    payload: bytes

    @property
    def may_go(self) -> bool:
        """Whether the hub has room for it."""
        return any(go.id == self.task for go in self.peer.got(SendGo))

    def go(self, size: int | None = None) -> str | None:
        """Sends the payload, or as many bytes more; returns why it was not taken, or None."""
        attachment = self.peer.attachment
        assert attachment is not None
        incoming = attachment.incoming[self.task]
        fill(incoming, self.payload, size)
        if not incoming.is_complete:
            return "incomplete"
        self.peer.hub.deliver(attachment, incoming)
        return self.peer.got(SendAck)[-1].rejected


def _on_the_way(kind: Frame, message: Message) -> tuple[Incoming, bytes]:
    encoded = encode(kind, message)
    return begin(encoded.head), b"".join(encoded.payload)


def fill(incoming: Incoming, payload: bytes, size: int | None = None) -> None:
    """Puts the payload, or so many bytes more of it, in place."""
    end = len(payload) if size is None else incoming.received + size
    while incoming.received < end:
        place = incoming.place(end - incoming.received)
        place[:] = payload[incoming.received : incoming.received + len(place)]
        incoming.advance(len(place))


@dataclass
class Trial:
    """A hub with its clock and its sites."""

    hub: Hub
    clock: Clock

    def peer(self, name: str) -> Peer:
        return Peer(self.hub, name).attach()

    def ask(
        self,
        *sites: str,
        model: Tensors | None = None,
        header: Mapping[str, JsonValue] | None = None,
        quorum: int | float = 0,
        timeout_s: float = 600,
        lost_after_s: float = 30,
        number: int = 1,
        trials: Sequence[str] = (),
        kind: str = "train",
        **terms: Any,
    ) -> Call:
        """Asks sites to train; with a model, updates must have its names, shapes and dtypes."""
        all_terms = CallTerms(
            round=number,
            quorum=quorum,
            timeout_s=timeout_s,
            lost_after_s=lost_after_s,
            expect=None if model is None else specs_of(model),
            **terms,
        )
        message = Message(header or {}, model or {})
        return self.hub.call(kind, message, sites, all_terms, trials)

    @staticmethod
    def of(*sites: str, epoch: int = 1, max_failures: int | None = None) -> "Trial":
        clock = Clock()
        return Trial(Hub("job-1", epoch, sites, clock, max_failures), clock)
