"""A site's link to its job's endpoint over gRPC with mutual TLS; attaches again when it breaks.

The address to dial is the gateway's, from the startup kit; the TLS name is the job's. The link
keeps each task's update until the controller has acknowledged it, so a broken connection costs no
training.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from prefect_federated.errors import (
    AttachRefused,
    ConnectionFailed,
    FederatedError,
    JobEnded,
    ProtocolError,
)
from prefect_federated.executors import ReceivedTask
from prefect_federated.kits import StartupKit
from prefect_federated.messages import JsonValue, Update
from prefect_federated.transport.grpc_server import (
    ATTACH,
    CHANNEL_OPTIONS,
    HEARTBEAT_S,
    SILENCE_S,
)
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import (
    DEFAULT_LIMITS,
    PROTOCOL_VERSION,
    Encoded,
    Frame,
    Limits,
    begin,
    body_of,
    control,
    encode,
    kind_of,
)

_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 3.0)
_SAY_AGAIN_S = 60.0

log = logging.getLogger("prefect_federated.site")


class GrpcLink:
    """A site's link to one job. Use as a context manager.

    Args:
        kit: The site's startup kit; its servers are dialled in turn.
        job: The job's id.
        limits: What a message may hold at most.
    """

    def __init__(self, kit: StartupKit, job: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self._kit = kit
        self._job = job
        self._limits = limits
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[ReceivedTask | FederatedError] = queue.SimpleQueue()
        self._holding: dict[str, Encoded | None] = {}  # task id -> its update; None: at work on it
        self._epoch = 0
        self._kinds: tuple[str, ...] = ()
        self._stream: _Stream | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def __enter__(self) -> "GrpcLink":
        return self

    def attach(self, kinds: Sequence[str]) -> None:
        """Introduces the site to the controller, and keeps it attached from now on."""
        self._kinds = tuple(kinds)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._thread.is_alive():
            self._thread.join(5)

    def receive(self) -> ReceivedTask:
        """Waits for the next site task that is still wanted.

        Raises:
            JobEnded: there will be none.
            AttachRefused: the job does not let this site in.
            ProtocolError: what one side sent, the other does not understand.
            ConnectionFailed: the kit cannot be read any more.
        """
        while True:
            item = self._tasks.get()
            if isinstance(item, FederatedError):
                raise item
            with self._lock:
                if item.id in self._holding:
                    return item

    def reply(self, task: ReceivedTask, update: Update) -> None:
        """Sends the task's update and keeps it until the controller has acknowledged it.

        What cannot travel (a metric that is not finite, an odd dtype) is reported as the task's
        failure instead.
        """
        try:
            encoded = encode(Frame.UPDATE, message_of(task.id, update))
        except ProtocolError as error:
            self.fail(task, error)
            return
        self._answer(task, encoded)

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        """Reports that the task failed: the error's type and the first line of its message."""
        self._answer(task, encode(Frame.UPDATE, failure_of(task.id, error)))

    def _answer(self, task: ReceivedTask, update: Encoded) -> None:
        with self._lock:
            if task.id not in self._holding:
                log.info("round %d: the answer came too late and is dropped", task.round)
                return
            self._holding[task.id] = update
            if self._stream is not None:
                self._stream.outbox.put(update)

    def _run(self) -> None:
        try:
            self._keep_attached()
        except Exception as error:  # nobody but `receive` can hear of it
            log.exception("the link to job %s broke", self._job)
            self._tasks.put(ConnectionFailed(f"the link to job {self._job} broke: {error}"))

    def _keep_attached(self) -> None:
        attempt, said_at = 0, -math.inf
        while not self._closed.is_set():
            server = self._kit.servers[attempt % len(self._kit.servers)]
            stream = _Stream(self._kit, self._job, f"{server.host}:{server.port}")
            try:
                self._read(stream)
                reason = "the controller closed the connection"
            except grpc.RpcError as error:
                final = _final_error(error)
                if final is not None:
                    self._tasks.put(final)
                    return
                reason = f"{error.code().name}: {error.details()}"
            except _StreamEnded:
                reason = "the connection ended in the middle of a task"
            except FederatedError as error:
                self._tasks.put(error)
                return
            finally:
                with self._lock:
                    self._stream = None
                stream.cancel()
            attempt = 0 if stream.was_welcome else attempt + 1
            if not self._closed.is_set() and time.monotonic() - said_at > _SAY_AGAIN_S:
                said_at = time.monotonic()
                log.warning(
                    "job %s at %s:%d cannot be reached (%s); trying again until the job ends",
                    self._job, server.host, server.port, reason,
                )  # fmt: skip
            self._closed.wait(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    def _read(self, stream: "_Stream") -> None:
        with self._lock:
            hello = {
                "protocol": PROTOCOL_VERSION,
                "job": self._job,
                "epoch": self._epoch,
                "holding": list(self._holding),
                "kinds": list(self._kinds),
            }
        for frame in stream.frames(control(Frame.HELLO, hello)):
            kind = kind_of(frame)
            if kind is Frame.TASK:
                self._take_task(stream, frame)
            elif kind is Frame.WELCOME:
                self._take_welcome(stream, body_of(frame, self._limits))
            elif kind is Frame.ACK:
                self._take_ack(body_of(frame, self._limits))
            elif kind is Frame.CLOSE:
                with self._lock:
                    self._holding.pop(str(body_of(frame, self._limits).get("id")), None)
            elif kind is Frame.END:
                end = body_of(frame, self._limits)
                raise JobEnded(str(end.get("outcome")), str(end.get("reason")))
            elif kind is not Frame.HEARTBEAT:
                raise ProtocolError(f"the controller sent an unexpected {kind.name} frame.")

    def _take_welcome(self, stream: "_Stream", welcome: dict[str, JsonValue]) -> None:
        epoch, wanted = welcome.get("epoch"), welcome.get("wanted")
        if not isinstance(epoch, int) or not isinstance(wanted, list):
            raise ProtocolError("the controller's welcome names no epoch.")
        with self._lock:
            if epoch < self._epoch:
                stream.cancel()
                return
            self._epoch = epoch
            stream.was_welcome = True
            self._holding = {task: held for task, held in self._holding.items() if task in wanted}
            for held in self._holding.values():
                if held is not None:
                    stream.outbox.put(held)
            self._stream = stream

    def _take_task(self, stream: "_Stream", frame: bytes) -> None:
        incoming = begin(frame, self._limits)
        incoming.allocate()
        while not incoming.is_complete:
            incoming.feed(stream.next_data())
        message = incoming.message()
        task_id, number = str(incoming.header.get("id")), incoming.header.get("round")
        config = incoming.header.get("config")
        task = ReceivedTask(
            id=task_id,
            kind=str(incoming.header.get("kind")),
            round=number if isinstance(number, int) else 0,
            model=message.tensors,
            config=config if isinstance(config, dict) else {},
        )
        with self._lock:
            self._holding[task_id] = None
        self._tasks.put(task)

    def _take_ack(self, ack: dict[str, JsonValue]) -> None:
        with self._lock:
            self._holding.pop(str(ack.get("id")), None)
        if ack.get("rejected") is not None:
            log.warning("the controller did not take the update: %s", ack["rejected"])


def _final_error(error: grpc.RpcError) -> FederatedError | None:
    """Returns the error that ends a link, or None if attaching again may help."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return AttachRefused(details)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return JobEnded("over", details)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return ProtocolError(details)
    return None


class _StreamEnded(Exception):
    """The controller's side closed the stream in the middle of a message."""


@dataclass(eq=False)
class _Stream:
    """One connection: frames in, and an outbox whose frames and heartbeats go out."""

    kit: StartupKit
    job: str
    address: str
    was_welcome: bool = False
    outbox: "queue.SimpleQueue[Encoded | None]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        credentials = grpc.ssl_channel_credentials(
            self.kit.ca.read_bytes(),
            self.kit.private_key.read_bytes(),
            self.kit.certificate.read_bytes(),
        )
        self._channel = grpc.secure_channel(
            self.address,
            credentials,
            options=[
                *CHANNEL_OPTIONS,
                ("grpc.ssl_target_name_override", self.kit.job_name(self.job)),
                ("grpc.default_authority", self.kit.job_name(self.job)),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._last_frame = time.monotonic()
        self._done = threading.Event()
        self._call: grpc.Call | None = None
        self._frames: Iterator[bytes] = iter(())

    def frames(self, hello: bytes) -> Iterator[bytes]:
        """Attaches and yields what arrives."""
        attach: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(ATTACH)
        self._call = call = attach(self._outgoing(hello))
        self._frames = iter(call)
        threading.Thread(target=self._watch, name="link-watch", daemon=True).start()
        for frame in self._frames:
            self._last_frame = time.monotonic()
            yield frame

    def next_data(self) -> bytes:
        """Returns the next data frame.

        Raises:
            ProtocolError: another frame came in between.
            _StreamEnded: the stream ended.
        """
        frame = next(self._frames, b"")
        self._last_frame = time.monotonic()
        if not frame:
            raise _StreamEnded
        if frame[:1] != Frame.DATA.value:
            raise ProtocolError("a task broke off before all of its bytes were there.")
        return frame

    def cancel(self) -> None:
        """Ends the connection."""
        self._done.set()
        self.outbox.put(None)
        if self._call is not None:
            self._call.cancel()
        self._channel.close()

    def _outgoing(self, hello: bytes) -> Iterator[bytes]:
        yield hello
        while True:
            try:
                update = self.outbox.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                yield control(Frame.HEARTBEAT)
                continue
            if update is None:
                return
            yield from update.frames()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            if time.monotonic() - self._last_frame > SILENCE_S and self._call is not None:
                log.warning("the controller was silent for %g s; attaching again", SILENCE_S)
                self._call.cancel()
                return
