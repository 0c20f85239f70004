"""The job endpoint: listens with mutual TLS in the controller's own process, one stream a site.

A site is who its certificate says. Whoever has not introduced itself yet holds nobody up: hands are
shaken in bounded time, each on a thread of its own, and only so many at once.
"""

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from prefect_federated.errors import ConfigurationError
from prefect_federated.frames import DEFAULT_LIMITS, Limits
from prefect_federated.kits import StartupKit
from prefect_federated.transport.connection import FAREWELL_S, Connection
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Attachment, Hello
from prefect_federated.transport.site_stream import SiteStream
from prefect_federated.transport.tls_channel import TlsChannel

HANDSHAKE_S = 10.0
"""Seconds for the handshake of TLS and the hello."""
_STRANGERS = 64  # connections at once that have not introduced themselves; then the oldest goes
_DELIVERIES = 2  # updates at once that are checked and filtered
_REPLACE_S = 2.0
_BACKLOG = 512

log = logging.getLogger("prefect_federated.endpoint")


class TlsEndpoint:
    """A job's endpoint. Use as a context manager; `address` ("host:port") is where it listens.

    Args:
        hub: The job's hub.
        kit: The server's startup kit.
        host: Address to listen on; the gateway must reach it.
        limits: What a message may hold at most.

    Raises:
        ConfigurationError: `host` is no address of this machine.
        KitError: the kit's files cannot be read any more.
    """

    def __init__(
        self,
        hub: Hub,
        kit: StartupKit,
        host: str = "127.0.0.1",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._hub = hub
        self._limits = limits
        self._context = kit.server_context()
        self._lock = threading.Lock()
        self._strangers: dict[Connection, threading.Thread] = {}  # the oldest first
        self._streams: dict[SiteStream, threading.Thread] = {}
        self._of_site: dict[str, SiteStream] = {}
        self._attaching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._is_closing = False
        self._numbers = itertools.count(1)
        self._deliveries = ThreadPoolExecutor(_DELIVERIES, thread_name_prefix="deliver")
        self._listener = _listen(host)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="endpoint", daemon=True)

    def __enter__(self) -> "TlsEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the streams say their last word, then closes them."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._thread.join()
        with self._lock:
            strangers, streams = dict(self._strangers), dict(self._streams)
        for connection in strangers:
            connection.cut()
        for stream in streams:
            stream.connection.finish(b"")
        deadline = time.monotonic() + FAREWELL_S + 1
        for stream, thread in streams.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                stream.connection.cut()
        self._deliveries.shutdown(wait=False, cancel_futures=True)

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                raw, _ = self._listener.accept()
            except OSError as error:
                if self._is_closing:
                    return
                log.warning("a connection could not be accepted: %s", error)
                time.sleep(0.1)  # too many open files; some will close
                continue
            try:
                connection = Connection(TlsChannel(raw, self._context), self._limits)
            except OSError as error:  # gone already
                raw.close()
                log.info("a connection broke at once: %s", error)
                continue
            self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        thread = threading.Thread(
            target=self._serve,
            args=(connection,),
            name=f"attach-{next(self._numbers)}",
            daemon=True,
        )
        with self._lock:
            if len(self._strangers) >= _STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cut()
            self._strangers[connection] = thread
        thread.start()

    def _serve(self, connection: Connection) -> None:
        stream = None
        try:
            connection.handshake(HANDSHAKE_S)
            stream = SiteStream(
                connection,
                self._hub,
                self._limits,
                self._introduce,
                self._attach,
                self._deliveries,
            )
            stream.serve()
        except OSError as error:
            log.info("a TLS handshake failed: %s", error)
        finally:
            connection.close()
            with self._lock:
                self._strangers.pop(connection, None)
                if stream is not None:
                    self._streams.pop(stream, None)
                    if self._of_site.get(stream.site) is stream:
                        del self._of_site[stream.site]

    def _introduce(self, stream: SiteStream) -> None:
        """Notes whose stream this is; the site's earlier one takes nothing any more."""
        with self._lock:
            thread = self._strangers.pop(stream.connection, threading.current_thread())
            self._streams[stream] = thread
            earlier = self._of_site.get(stream.site)
            self._of_site[stream.site] = stream
        if earlier is not None:
            earlier.replace(_REPLACE_S)
        if self._is_closing:
            stream.connection.finish(b"")

    def _attach(self, stream: SiteStream, hello: Hello) -> Attachment | None:
        """Lets a site in, unless it has a newer connection.

        Its earlier one may have been waited for so long that a third has attached meanwhile.
        """
        with self._lock:
            turn = self._attaching[stream.site]
        with turn:
            with self._lock:
                if self._of_site.get(stream.site) is not stream:
                    return None
            return self._hub.attach(hello, stream.send)


def _listen(host: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, 0), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"a job's endpoint cannot listen on {host!r} ({error.strerror}). Set "
            "PREFECT_FEDERATED_ENDPOINT_HOST to an address of this machine that the gateway "
            "reaches."
        ) from error
