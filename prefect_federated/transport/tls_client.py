"""A site's link to its job's endpoint over mutual TLS; attaches again when the connection breaks.

The address to dial is the gateway's, from the startup kit; the TLS name is the job's. What the site
holds, and what is to be sent again, is `session`'s business: a broken connection costs no training,
and a broken transfer goes on where it broke.
"""

import logging
import math
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prefect_federated.errors import ConnectionFailed, FederatedError, KitError
from prefect_federated.executors import ReceivedTask, Site
from prefect_federated.frames import DEFAULT_LIMITS, Frame, Limits
from prefect_federated.kits import ServerAddress, StartupKit
from prefect_federated.messages import Update
from prefect_federated.transport.connection import Connection, ConnectionLost
from prefect_federated.transport.controller_stream import ControllerStream, Replaced
from prefect_federated.transport.note_gate import POINTS_A_SECOND, POINTS_AT_ONCE, Allowance
from prefect_federated.transport.notepad import Courier, Notepad
from prefect_federated.transport.session import Session
from prefect_federated.transport.signals import SiteNotes
from prefect_federated.transport.site_filters import SiteFilters, Visit
from prefect_federated.transport.task_box import TaskBox
from prefect_federated.transport.tls_channel import TlsChannel
from prefect_federated.transport.tls_failures import explain
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import Encoded, encode

_DIAL_TIMEOUT_S = 5.0
_HANDSHAKE_TIMEOUT_S = 15.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 3.0)
_SAY_AGAIN_S = 60.0

log = logging.getLogger("prefect_federated.site")


class TlsLink:
    """A site's link to one job. Use as a context manager.

    Args:
        kit: The site's startup kit; its servers are dialled in turn.
        job: The job's id.
        limits: What a message may hold at most.
        labels: What the site says of itself, such as its region.
        filters: What tasks and updates pass at the site.
        site: The site, for filters that keep something; only its name and state folder count.
    """

    def __init__(
        self,
        kit: StartupKit,
        job: str,
        limits: Limits = DEFAULT_LIMITS,
        labels: Mapping[str, str] | None = None,
        filters: SiteFilters | None = None,
        site: Site | None = None,
    ) -> None:
        self._kit = kit
        self._job = job
        self._limits = limits
        self._labels = dict(labels or {})
        self._filters = filters or SiteFilters((), limits)
        self._site = site or Site(kit.identity.name, Path(), Path())
        self._visits: dict[str, Visit] = {}
        self._courier = Courier()
        self._pads: dict[str, Notepad] = {}
        self._points = Allowance(POINTS_AT_ONCE, POINTS_A_SECOND)
        self._names: set[str] = set()  # of the metrics in its notes
        self._turn = threading.RLock()  # whoever has it may use the session
        self._session = Session(kit.identity.name, (), self._labels)
        self._tasks = TaskBox()
        self._connection: Connection | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def __enter__(self) -> "TlsLink":
        return self

    def attach(self, kinds: Sequence[str]) -> None:
        """Introduces the site to the controller, and keeps it attached from now on."""
        self._session = Session(self._kit.identity.name, kinds, self._labels)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._courier.close()
        with self._turn:
            if self._connection is not None:
                self._connection.cut()
        if self._thread.is_alive():
            self._thread.join(_DIAL_TIMEOUT_S)

    def receive(self) -> ReceivedTask:
        """Waits for the next site task that is still wanted.

        Raises:
            JobEnded: there will be none.
            AttachRefused: the job does not let this site in.
            ProtocolError: what one side sent, the other does not understand.
            ConnectionFailed: the kit cannot be read any more.
        """
        while True:
            item = self._tasks.take()
            number = str(item.header.get("id"))
            with self._turn:
                if not self._session.is_wanted(number):
                    del item  # before the next one comes: each holds a model
                    continue
            try:
                task, visit = self._filters.entering(self._site, item)
            except FederatedError as error:
                log.error("a site task cannot be taken: %s", error)
                self._answer(number, encode(Frame.UPDATE, failure_of(number, error)))
                del item
                continue
            self._visits = {number: visit}
            pad = Notepad(number, self._courier, self._tell, self._points, self._names)
            self._pads = {number: pad}
            return replace(task, stream=pad)

    def reply(self, task: ReceivedTask, update: Update) -> None:
        """Sends the task's update and keeps it until the controller has acknowledged it.

        What cannot travel (a metric that is not finite, an odd dtype) is reported as the task's
        failure instead.
        """
        try:
            message = message_of(task.id, update)
            if (visit := self._visits.get(task.id)) is not None:
                message = self._filters.leaving(message, visit)
            encoded = encode(Frame.UPDATE, message)
        except FederatedError as error:
            self.fail(task, error)
            return
        self._answer(task.id, encoded)

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        """Reports that the task failed: the error's type and the first line of its message."""
        self._answer(task.id, encode(Frame.UPDATE, failure_of(task.id, error)))

    def _answer(self, task: str, update: Encoded) -> None:
        self._visits.pop(task, None)  # the received model is not needed any more
        pad = self._pads.pop(task, None)
        notes = [] if pad is None else pad.close()
        with self._turn:
            if self._session.is_wanted(task):
                self._session.reply(task, update, notes)
            else:
                log.info("the answer to task %s came too late and is dropped", task)

    def _tell(self, notes: SiteNotes) -> bool:
        with self._turn:
            return self._session.tell(notes)

    def _run(self) -> None:
        try:
            self._keep_attached()
        except Exception as error:  # nobody but `receive` can hear of it
            log.exception("the link to job %s broke", self._job)
            self._tasks.end(ConnectionFailed(f"the link to job {self._job} broke: {error}"))

    def _keep_attached(self) -> None:
        attempt, said_at = 0, -math.inf
        while not self._closed.is_set():
            server = self._kit.servers[attempt % len(self._kit.servers)]
            try:
                was_welcome, reason = self._attach_to(server)
            except KitError as error:
                self._tasks.end(ConnectionFailed(str(error)))
                return
            except FederatedError as end:
                self._tasks.end(end)
                return
            attempt = 0 if was_welcome else attempt + 1
            if not self._closed.is_set() and time.monotonic() - said_at > _SAY_AGAIN_S:
                said_at = time.monotonic()
                log.warning(
                    "job %s at %s cannot be reached (%s); trying again until the job ends",
                    self._job, server, reason,
                )  # fmt: skip
            self._closed.wait(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    def _attach_to(self, server: ServerAddress) -> tuple[bool, str]:
        """Serves one connection; returns whether the site was welcome, and why it ended.

        Raises:
            FederatedError: another connection would not help.
        """
        context = self._kit.client_context()
        try:
            raw = socket.create_connection((server.host, server.port), _DIAL_TIMEOUT_S)
        except OSError as error:
            return False, explain(error)
        try:
            channel = TlsChannel(raw, context, self._kit.job_name(self._job))
        except OSError as error:
            raw.close()
            return False, explain(error)
        connection = Connection(channel, self._limits)
        stream = ControllerStream(connection, self._session, self._turn, self._limits, self._tasks)
        try:
            with self._turn:
                self._connection = connection
            if self._closed.is_set():
                return False, "the link was closed"
            connection.handshake(_HANDSHAKE_TIMEOUT_S)
            stream.serve(self._job)
        except OSError as error:
            return stream.was_welcome, explain(error)
        except Replaced as replaced:  # not at once: two processes of a site would chase each other
            return False, str(replaced)
        except ConnectionLost as lost:
            cause = lost.__cause__
            return stream.was_welcome, explain(cause) if isinstance(cause, OSError) else str(lost)
        finally:
            with self._turn:
                self._connection = None
            connection.close()
        return stream.was_welcome, "the connection was ended"
