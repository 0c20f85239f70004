"""One connection to a job's controller as its site sees it: frames to the session, and back.

Its methods are called on the connection's thread; the session is shared with the executor's.
"""

import logging
import threading

from prefect_federated.errors import AttachRefused, JobEnded, OutOfSpace, ProtocolError
from prefect_federated.frames import Frame, Limits, body_of, control, position_of
from prefect_federated.messages import JsonValue
from prefect_federated.transport.connection import Connection, ConnectionLost
from prefect_federated.transport.notes import as_body
from prefect_federated.transport.outbox import Transfer
from prefect_federated.transport.session import Session
from prefect_federated.transport.signals import (
    FromSite,
    SiteNotes,
    SiteOffer,
    SitePayload,
    SiteUpdate,
)
from prefect_federated.transport.task_box import TaskBox
from prefect_federated.transport.updates import failure_of
from prefect_federated.wire import Incoming, begin, encode

log = logging.getLogger("prefect_federated.site")


class ControllerStream:
    """One connection of a site to its job, from its hello to its end.

    Args:
        connection: The connection, whose hands are shaken.
        session: What the site knows of the job.
        turn: Gives the session to one thread at a time.
        limits: What a message may hold at most.
        tasks: Gets each site task that is there whole and that the executor is to do.
    """

    def __init__(
        self,
        connection: Connection,
        session: Session,
        turn: threading.RLock,
        limits: Limits,
        tasks: TaskBox,
    ) -> None:
        self.was_welcome = False
        self._connection = connection
        self._session = session
        self._turn = turn
        self._limits = limits
        self._tasks = tasks

    def serve(self, job: str) -> None:
        """Carries what the site and its controller have to say to each other, until that ends.

        Raises:
            JobEnded: the job is over.
            AttachRefused: the job does not let this site in.
            ProtocolError: what one side sent, the other does not understand.
            ConnectionLost: the connection ended otherwise; another may go better.
        """
        with self._turn:
            self._session.connected(self._send)
            hello = self._session.hello()
        self._connection.post(
            control(
                Frame.HELLO,
                {
                    "protocol": hello.protocol,
                    "job": job,
                    "epoch": hello.epoch,
                    "kinds": list(hello.kinds),
                    "labels": dict(hello.labels),
                    "holding": list(hello.holding),
                    "receiving": dict(hello.receiving),
                },
            )
        )
        self._connection.introduced()
        try:
            self._connection.run(self)
        finally:
            with self._turn:
                self._session.disconnected()

    # What the connection calls

    def begin(self, kind: Frame, frame: bytes) -> Incoming:
        """Returns where a site task's payload goes."""
        self._must_be_welcome(kind)
        if kind is Frame.TASK:
            incoming = begin(frame, self._limits)
            self._tasks.keep_if(lambda task: False)  # a newer one comes: none waits beside it
            try:
                with self._turn:
                    self._session.task(incoming)
            except OutOfSpace as error:
                log.error("a site task does not fit: %s", error)
                incoming.discard()
                failure = failure_of(str(incoming.header.get("id")), error)
                self._transfer(Transfer((sent := encode(Frame.UPDATE, failure)).head, sent))
            return incoming
        if kind is Frame.PAYLOAD:
            with self._turn:
                return self._session.payload(*position_of(frame))
        raise ProtocolError(f"the controller sent an unexpected {kind.name} frame.")

    def control(self, kind: Frame, frame: bytes) -> None:
        """Takes what the controller says beside site tasks."""
        body = body_of(frame, self._limits)
        match kind:
            case Frame.WELCOME:
                self._take_welcome(body)
            case Frame.GO:
                self._must_be_welcome(kind)
                with self._turn:
                    self._session.go(*position_of(frame))
            case Frame.ACK:
                with self._turn:
                    self._session.ack(str(body.get("id")))
                self._let_go()
                if body.get("rejected") is not None:
                    log.warning("the controller did not take the update: %s", body["rejected"])
            case Frame.CLOSE:
                with self._turn:
                    self._session.close(str(body.get("id")))
                self._let_go()
            case Frame.NOTICE:
                log.warning("the controller says: %s", body.get("reason"))
            case Frame.END:
                raise _end_of(str(body.get("outcome")), str(body.get("reason")))
            case Frame.HEARTBEAT:
                pass
            case _:
                raise ProtocolError(f"the controller sent an unexpected {kind.name} frame.")

    def complete(self, incoming: Incoming) -> None:
        """Hands a site task that is there whole to the executor."""
        if incoming.is_discarded:
            return
        with self._turn:
            is_wanted = self._session.complete(incoming)
        if is_wanted:
            self._tasks.put(incoming.message())

    # Inside

    def _must_be_welcome(self, kind: Frame) -> None:
        if not self.was_welcome:
            raise ProtocolError(f"the controller sent a {kind.name} frame before its welcome.")

    def _take_welcome(self, welcome: dict[str, JsonValue]) -> None:
        epoch, wanted = welcome.get("epoch"), welcome.get("wanted")
        if not isinstance(epoch, int) or not isinstance(wanted, list):
            raise ProtocolError("the controller's welcome names no epoch.")
        with self._turn:
            if not self._session.welcome(epoch, [str(task) for task in wanted]):
                raise ConnectionLost(f"attempt {epoch} is not the newest one of this job")
        self._let_go()
        self.was_welcome = True

    def _let_go(self) -> None:
        """Lets go of the waiting site task if nobody waits for it any more."""
        self._tasks.keep_if(self._session.is_wanted)

    def _send(self, item: FromSite) -> None:
        match item:
            case SiteNotes():
                self._connection.post(control(Frame.NOTES, as_body(item)))
            case SiteOffer():
                self._connection.post(item.update.headed(Frame.OFFER))
            case SiteUpdate():
                self._transfer(Transfer(item.update.headed(Frame.UPDATE), item.update))
            case SitePayload():
                opening = control(Frame.PAYLOAD, {"id": item.id, "offset": item.offset})
                self._transfer(Transfer(opening, item.update, item.offset, item.is_wanted))

    def _transfer(self, transfer: Transfer) -> None:
        self._connection.transfer(transfer)


class Replaced(ConnectionLost):
    """Another connection under this site's certificate has taken this one's place."""


def _end_of(outcome: str, reason: str) -> Exception:
    """Returns what a controller's last frame means for the site."""
    match outcome:
        case "refused":
            return AttachRefused(reason)
        case "protocol":
            return ProtocolError(reason)
        case "stale" | "internal":
            return ConnectionLost(reason)
        case "replaced":
            return Replaced(reason)
        case _:
            return JobEnded(outcome, reason)
