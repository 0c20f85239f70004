"""A hub under a clock of the test's, and sites that the test speaks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prefect_federated.messages import JsonValue, Message, Tensors, Update
from prefect_federated.transport.calls import Call, CallTerms
from prefect_federated.transport.hub import (
    Attachment,
    Hello,
    Hub,
    Outgoing,
    SendAck,
    SendClose,
    SendEnd,
    SendTask,
)
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import Frame, Incoming, begin, encode, specs_of

Item = TypeVar("Item", SendTask, SendAck, SendClose, SendEnd)


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

    def attach(self, *, epoch: int = 0, holding: tuple[str, ...] = ()) -> "Peer":
        hello = Hello(self.name, ("train", "evaluate"), epoch=epoch, holding=holding)
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
        """Sends any message as the answer to a task; returns why it was not taken, or None."""
        assert self.attachment is not None
        head, *chunks = encode(Frame.UPDATE, message).frames()
        incoming: Incoming = begin(head)

        def fill() -> None:
            while chunks:
                incoming.feed(chunks.pop(0))

        self.hub.receive(self.attachment, incoming, fill)
        assert incoming.is_complete
        assert not chunks
        return self.got(SendAck)[-1].rejected


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
    ) -> Call:
        """Asks sites to train; with a model, updates must have its names, shapes and dtypes."""
        terms = CallTerms(
            round=number,
            quorum=quorum,
            timeout_s=timeout_s,
            lost_after_s=lost_after_s,
            expect=None if model is None else specs_of(model),
        )
        return self.hub.call("train", Message(header or {}, model or {}), sites, terms)

    @staticmethod
    def of(*sites: str, epoch: int = 1) -> "Trial":
        clock = Clock()
        return Trial(Hub("job-1", epoch, sites, clock), clock)
