"""One site's connection as its job's endpoint sees it: the hub's signals to frames, and back.

It decides nothing: who may attach and what counts is the hub's. Its methods are called on the
connection's thread; large updates are delivered on another, so that checks and filters on
gigabytes keep no heartbeat back.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from prefect_federated.errors import (
    AttachRefused,
    FederatedError,
    JobEnded,
    KitError,
    ProtocolError,
    StaleController,
)
from prefect_federated.frames import (
    PROTOCOL_VERSION,
    Frame,
    Limits,
    body_of,
    control,
    position_of,
)
from prefect_federated.kits import Role, identity_of
from prefect_federated.messages import JsonValue
from prefect_federated.transport.connection import Connection, ConnectionLost
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.note_gate import NoteGate
from prefect_federated.transport.outbox import Transfer
from prefect_federated.transport.signals import (
    EAGER_BYTES,
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
from prefect_federated.wire import Incoming, begin, nowhere

_OUTCOMES: Mapping[type[FederatedError], str] = {
    AttachRefused: "refused",
    JobEnded: "over",
    StaleController: "stale",
    ProtocolError: "protocol",
}
"""What the last frame calls the error that ended a connection."""
_UNASKED = 20
_UNASKED_S = 10.0
"""So many updates that nobody asked for, in so many seconds, end a connection."""


log = logging.getLogger("prefect_federated.endpoint")


class SiteStream:
    """One connection of a site, from its handshake to its end.

    Args:
        connection: The connection, whose hands are shaken.
        hub: The job's hub.
        limits: What a message may hold at most.
        introduce: Called when the site has said a well-formed hello; ends its earlier connection.
        attach: Lets the site in at the hub; None if it has another connection by now.
        deliveries: Runs the deliveries of large updates.
    """

    def __init__(
        self,
        connection: Connection,
        hub: Hub,
        limits: Limits,
        introduce: Callable[["SiteStream"], None],
        attach: Callable[["SiteStream", Hello], Attachment | None],
        deliveries: Executor,
    ) -> None:
        self.site = "?"
        self.connection = connection
        self._hub = hub
        self._limits = limits
        self._introduce = introduce
        self._attach = attach
        self._deliveries = deliveries
        self._attachment: Attachment | None = None
        self._asked = 0  # site tasks sent here; each is answered by one update
        self._answers = 0  # heads of updates that were due
        self._notes = NoteGate()
        self._unasked: deque[float] = deque(maxlen=_UNASKED)  # when a head came that was not due

    def serve(self) -> None:
        """Carries what the site and the hub have to say to each other, until that ends."""
        try:
            self._identify()
            self.connection.run(self)
        except ConnectionLost as lost:
            log.info("site %s: disconnected (%s)", self.site, lost)
        except (AttachRefused, JobEnded, StaleController, ProtocolError) as error:
            self._refuse(error)
        except Exception as error:  # the service's boundary: one site's bytes end one stream
            self._break_off(error)
            self._detach()
            self.connection.farewell(b"")
        finally:
            self._detach()

    def replace(self, timeout_s: float) -> None:
        """Ends this connection because the site has another; returns when it takes no more."""
        body = {"outcome": "replaced", "reason": "the site has attached again"}
        self.connection.finish(control(Frame.END, body))
        if not self.connection.wait_deaf(timeout_s):
            self.connection.cut()

    # What the connection calls

    def begin(self, kind: Frame, frame: bytes) -> Incoming:
        """Returns where an update's payload goes: into its tensors, or nowhere if unwanted."""
        attachment = self._attached()
        if kind is Frame.UPDATE:
            self._note_head()
            incoming = begin(frame, self._limits)
            if incoming.payload_bytes > EAGER_BYTES:
                raise ProtocolError(
                    f"an update of {incoming.payload_bytes:,} bytes came unasked; above "
                    f"{EAGER_BYTES:,} it must be offered."
                )
            if not self._hub.offer(attachment, incoming, at_once=True):
                incoming.discard()
            return incoming
        if kind is Frame.PAYLOAD:
            task, offset = position_of(frame)
            granted = attachment.incoming.get(task)
            if granted is None:  # taken back, and the site does not know yet
                return nowhere(self._limits)
            if granted.received != offset:
                raise ProtocolError(
                    f"a payload goes on at byte {offset:,}; the server has {granted.received:,}."
                )
            return granted
        raise ProtocolError(f"site {self.site!r} sent an unexpected {kind.name} frame.")

    def control(self, kind: Frame, frame: bytes) -> None:
        """Takes a hello, an offer, notes or a heartbeat."""
        if kind is Frame.HELLO and self._attachment is None:
            self._greet(body_of(frame, self._limits))
        elif kind is Frame.OFFER:
            attachment = self._attached()
            self._note_head()
            self._hub.offer(attachment, begin(frame, self._limits), at_once=False)
        elif kind is Frame.NOTES:
            attachment = self._attached()
            self._hub.note(attachment, self._notes.read(body_of(frame, self._limits)))
        elif kind is not Frame.HEARTBEAT or self._attachment is None:
            self._attached()
            raise ProtocolError(f"site {self.site!r} sent an unexpected {kind.name} frame.")

    def complete(self, incoming: Incoming) -> None:
        """Delivers an update that is there whole."""
        if incoming.is_discarded:
            return
        if incoming.payload_bytes <= EAGER_BYTES:
            self._hub.deliver(self._attached(), incoming)
        else:
            self._deliveries.submit(self._deliver, self._attached(), incoming)

    def send(self, item: Outgoing) -> None:
        """Sends what the hub has to say; the hub holds its lock meanwhile."""
        match item:
            case SendTask():
                self._asked += 1
                opening = item.task.head
                if item.offset:
                    opening = control(Frame.PAYLOAD, {"id": item.id, "offset": item.offset})
                transfer = Transfer(opening, item.task, item.offset, item.is_wanted)
                self.connection.transfer(transfer)
            case SendGo():
                self._post(Frame.GO, id=item.id, offset=item.offset)
            case SendAck():
                self._post(Frame.ACK, id=item.id, rejected=item.rejected)
            case SendClose():
                self._post(Frame.CLOSE, id=item.id, reason=item.reason)
            case SendNotice():
                self._post(Frame.NOTICE, reason=item.reason)
            case SendEnd():
                self.connection.finish(_end(item.outcome, item.reason))

    # Inside

    def _note_head(self) -> None:
        """Counts an update's head, each of which costs the server work, due or not."""
        if self._answers < self._asked:
            self._answers += 1
            return
        now = time.monotonic()
        self._unasked.append(now)
        if len(self._unasked) == _UNASKED and now - self._unasked[0] < _UNASKED_S:
            raise ProtocolError(
                f"{_UNASKED} updates that nobody had asked for came within {_UNASKED_S:g} s; a "
                "site sends one for each site task."
            )

    def _deliver(self, attachment: Attachment, incoming: Incoming) -> None:
        try:
            self._hub.deliver(attachment, incoming)
        except Exception as error:
            self._break_off(error)

    def _identify(self) -> None:
        try:
            identity = identity_of(self.connection.certificate or b"")
        except KitError as error:
            raise AttachRefused(str(error)) from error
        if identity.role is not Role.SITE:
            raise AttachRefused(f"{identity.name!r} is a {identity.role}; only sites may attach.")
        self.site = identity.name

    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise ProtocolError("a stream must begin with a hello.")
        return self._attachment

    def _greet(self, body: dict[str, JsonValue]) -> None:
        hello = _read_hello(self.site, body)
        if hello.protocol != PROTOCOL_VERSION:  # first: the rest of its hello may mean other things
            self._hub.attach(hello, self.send)  # raises, and says who must upgrade
        if body.get("job") != self._hub.job:
            raise AttachRefused(
                f"this is job {self._hub.job}, site {self.site!r} wants {body.get('job')!r:.60}."
            )
        self.connection.introduced()
        self._introduce(self)
        self._attachment = attachment = self._attach(self, hello)
        if attachment is None:
            return  # the site's newer connection has ended this one, or is about to
        self._answers -= len(attachment.wanted)
        welcome = {"epoch": attachment.epoch, "wanted": list(attachment.wanted)}
        self.connection.post_first(control(Frame.WELCOME, welcome))

    def _post(self, kind: Frame, **body: JsonValue) -> None:
        self.connection.post(control(kind, body))

    def _refuse(self, error: FederatedError) -> None:
        outcome = _OUTCOMES[type(error)]
        reason = str(error)
        if self._attachment is None:
            log.warning("refused a site: %s", error)
        else:
            log.warning("site %s: %s", self.site, error)
            reason = f"site {self.site!r}: {error}"
            self._hub.fail(self.site, None, f"protocol error: {error}")
        self._detach()
        self.connection.farewell(_end(outcome, reason))

    def _break_off(self, error: Exception) -> None:
        """Ends this connection over an error of the server's own; the site will come again."""
        log.error("site %s: its update could not be taken", self.site, exc_info=error)
        reason = f"internal error at the server: {type(error).__name__}"
        if self._attachment is not None:
            self._hub.fail(self.site, None, reason)
        self.connection.finish(_end("internal", f"{reason}; see its log."))

    def _detach(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._hub.detach(attachment)


def _end(outcome: str, reason: str) -> bytes:
    return control(Frame.END, {"outcome": outcome, "reason": reason})


def _read_hello(site: str, body: dict[str, JsonValue]) -> Hello:
    protocol, epoch = body.get("protocol"), body.get("epoch")
    holding, kinds = body.get("holding"), body.get("kinds")
    labels, receiving = body.get("labels") or {}, body.get("receiving") or {}
    if isinstance(protocol, int) and protocol != PROTOCOL_VERSION:
        return Hello(site, (), protocol)  # the hub says who must upgrade
    if not (
        isinstance(protocol, int)
        and isinstance(epoch, int)
        and isinstance(holding, list)
        and isinstance(kinds, list)
        and isinstance(labels, dict)
        and isinstance(receiving, dict)
    ):
        raise ProtocolError("a hello must name `protocol`, `epoch`, `holding` and `kinds`.")
    return Hello(
        site,
        tuple(str(kind) for kind in kinds),
        protocol,
        epoch,
        tuple(str(task) for task in holding),
        {name: str(value) for name, value in labels.items()},
        {task: size for task, size in receiving.items() if isinstance(size, int) and size >= 0},
    )
