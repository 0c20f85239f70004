"""The job endpoint: a gRPC server with mutual TLS in the controller's own process.

One bidirectional stream a site, raw frames (see `wire`); a site is who its certificate says.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import cast

import grpc

from prefect_federated.errors import (
    AttachRefused,
    ConfigurationError,
    FederatedError,
    JobEnded,
    KitError,
    ProtocolError,
    StaleController,
)
from prefect_federated.kits import Role, StartupKit, identity_of
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
from prefect_federated.wire import (
    DEFAULT_LIMITS,
    Frame,
    Limits,
    begin,
    body_of,
    control,
    kind_of,
)

ATTACH = "/prefect_federated.Job/Attach"
HEARTBEAT_S = 3.0
SILENCE_S = 12.0  # without a frame for so long, a connection counts as broken

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),  # it would let a fast line fill memory before anybody reads
    ("grpc.http2.lookahead_bytes", 4 << 20),
]
_SERVER_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]
_STATUS: Mapping[type[FederatedError], grpc.StatusCode] = {
    AttachRefused: grpc.StatusCode.PERMISSION_DENIED,
    JobEnded: grpc.StatusCode.FAILED_PRECONDITION,
    StaleController: grpc.StatusCode.ABORTED,
    ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
}

log = logging.getLogger("prefect_federated.endpoint")


class GrpcEndpoint:
    """A job's endpoint. Use as a context manager; `address` is where it listens.

    Args:
        hub: The job's hub.
        kit: The server's startup kit.
        sites: Number of sites that may attach.
        host: Address to listen on; the gateway must reach it.
        limits: What a message may hold at most.

    Raises:
        ConfigurationError: `host` is no address of this machine.
    """

    def __init__(
        self,
        hub: Hub,
        kit: StartupKit,
        sites: int,
        host: str = "127.0.0.1",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._hub = hub
        self._limits = limits
        self._streams: set[_Stream] = set()
        self._stopping = threading.Event()
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._attach
        )
        service, method = ATTACH.strip("/").split("/")
        self._server = grpc.server(
            futures.ThreadPoolExecutor(2 * sites + 8, thread_name_prefix="attach"),
            options=_SERVER_OPTIONS,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        credentials = grpc.ssl_server_credentials(
            [(kit.private_key.read_bytes(), kit.certificate.read_bytes())],
            kit.ca.read_bytes(),
            require_client_auth=True,
        )
        try:
            port = self._server.add_secure_port(f"{host}:0", credentials)
        except RuntimeError as error:
            raise ConfigurationError(
                f"a job's endpoint cannot listen on {host!r}. Set PREFECT_FEDERATED_ENDPOINT_HOST "
                "to an address of this machine that the gateway reaches."
            ) from error
        self.address = f"{host}:{port}"

    def __enter__(self) -> "GrpcEndpoint":
        self._server.start()
        threading.Thread(target=self._watch, name="endpoint-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the streams say their last word, then closes them."""
        self._stopping.set()
        for stream in list(self._streams):
            stream.outbox.put(None)
        self._server.stop(grace=2).wait()

    def _attach(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = _Stream(frames, context, self._hub, self._limits)
        self._streams.add(stream)  # from now on, `_watch` ends it when it is silent
        try:
            attachment = stream.greet()
        except FederatedError as error:
            self._streams.discard(stream)
            log.warning("refused a site: %s", error)
            context.abort(_STATUS.get(type(error), grpc.StatusCode.UNKNOWN), str(error))
        except _Disconnected:
            self._streams.discard(stream)
            return
        context.add_callback(stream.gone)
        threading.Thread(
            target=stream.read, args=(attachment,), name=f"read-{attachment.site}", daemon=True
        ).start()
        try:
            yield from stream.outgoing(attachment)
            if stream.error is not None:
                context.abort(_STATUS[ProtocolError], str(stream.error))
        finally:
            self._streams.discard(stream)
            self._hub.detach(attachment)

    def _watch(self) -> None:
        while not self._stopping.wait(1.0):
            for stream in list(self._streams):
                if stream.is_reading and time.monotonic() - stream.last_frame > SILENCE_S:
                    log.warning("site %s: silent for %g s, disconnected", stream.site, SILENCE_S)
                    stream.context.cancel()


@dataclass(eq=False)
class _Stream:
    """One attached site's stream: a thread reads it, gRPC's own thread writes it."""

    frames: Iterator[bytes]
    context: grpc.ServicerContext
    hub: Hub
    limits: Limits
    site: str = "?"
    outbox: "queue.SimpleQueue[Outgoing | None]" = field(default_factory=queue.SimpleQueue)
    last_frame: float = field(default_factory=time.monotonic)
    is_reading: bool = True
    error: ProtocolError | None = None

    def greet(self) -> Attachment:
        certificates = cast(Sequence[bytes], self.context.auth_context()["x509_pem_cert"])
        try:
            identity = identity_of(certificates[0])
        except KitError as error:
            raise AttachRefused(str(error)) from error
        if identity.role is not Role.SITE:
            raise AttachRefused(f"{identity.name!r} is a {identity.role}; only sites may attach.")
        self.site = identity.name
        frame = self._next()
        if frame is None or kind_of(frame) is not Frame.HELLO:
            raise ProtocolError("a stream must begin with a hello.")
        hello = body_of(frame, self.limits)
        protocol, epoch = hello.get("protocol"), hello.get("epoch")
        holding, kinds = hello.get("holding"), hello.get("kinds")
        if not (
            isinstance(protocol, int)
            and isinstance(epoch, int)
            and isinstance(holding, list)
            and isinstance(kinds, list)
        ):
            raise ProtocolError("a hello must name `protocol`, `epoch`, `holding` and `kinds`.")
        if hello.get("job") != self.hub.job:
            raise AttachRefused(
                f"this is job {self.hub.job}, site {self.site!r} wants {hello.get('job')!r:.60}."
            )
        return self.hub.attach(
            Hello(
                self.site,
                tuple(str(kind) for kind in kinds),
                protocol,
                epoch,
                tuple(str(task) for task in holding),
            ),
            self.outbox.put,
        )

    def outgoing(self, attachment: Attachment) -> Iterator[bytes]:
        """Yields what the site is to receive, and heartbeats in between, until the stream ends."""
        yield control(Frame.WELCOME, {"epoch": attachment.epoch, "wanted": list(attachment.wanted)})
        while True:
            try:
                item = self.outbox.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                yield control(Frame.HEARTBEAT)
                continue
            if item is None:
                return
            if isinstance(item, SendTask):
                yield from item.task.frames()
            elif isinstance(item, SendAck):
                yield control(Frame.ACK, {"id": item.id, "rejected": item.rejected})
            elif isinstance(item, SendClose):
                yield control(Frame.CLOSE, {"id": item.id})
            elif isinstance(item, SendEnd):
                yield control(Frame.END, {"outcome": item.outcome, "reason": item.reason})
                return

    def read(self, attachment: Attachment) -> None:
        """Takes what the site sends until its stream ends or breaks."""
        try:
            while (frame := self._next()) is not None:
                kind = kind_of(frame)
                if kind is Frame.UPDATE:
                    self._read_update(attachment, frame)
                elif kind is not Frame.HEARTBEAT:
                    raise ProtocolError(f"site {self.site!r} sent an unexpected {kind.name} frame.")
        except ProtocolError as error:
            log.warning("site %s: %s", self.site, error)
            self.error = ProtocolError(f"site {self.site!r}: {error}")
            self.hub.fail(self.site, None, f"protocol error: {error}")
        except _Disconnected:
            pass
        except Exception as error:  # the service's boundary: one site's bytes end one stream
            log.exception("site %s: its update could not be taken", self.site)
            self.error = ProtocolError("internal error at the server; see its log.")
            self.hub.fail(self.site, None, f"internal error at the server: {type(error).__name__}")
        finally:
            self.gone()

    def _read_update(self, attachment: Attachment, frame: bytes) -> None:
        incoming = begin(frame, self.limits)

        def fill() -> None:
            while not incoming.is_complete:
                chunk = self._next()
                if chunk is None:
                    raise _Disconnected
                if kind_of(chunk) is not Frame.DATA:
                    raise ProtocolError(
                        f"an update broke off before its {incoming.payload_bytes:,} bytes were "
                        f"there (a {kind_of(chunk).name} frame came instead)."
                    )
                incoming.feed(chunk)

        self.is_reading = False
        self.hub.receive(attachment, incoming, fill)

    def _next(self) -> bytes | None:
        self.last_frame = time.monotonic()
        self.is_reading = True
        try:
            frame = next(self.frames, None)
        except Exception as error:  # grpc raises a bare Exception when the stream has broken
            raise _Disconnected from error
        finally:
            self.is_reading = False
        return frame

    def gone(self) -> None:
        """Ends the writing side."""
        with contextlib.suppress(RuntimeError):
            self.outbox.put(None)


class _Disconnected(Exception):
    """The stream broke; the site will attach again."""
