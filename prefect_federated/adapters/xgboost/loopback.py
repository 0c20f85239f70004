"""The loopback adapter: a gRPC server that speaks XGBoost's federated protocol to one training.

It listens on 127.0.0.1 and takes one client, which proves itself by a certificate that was made for
this training: no other account of the site's machine can join. The client's key is in a folder that
only this account may read, and only until XGBoost has read it.
"""

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from prefect_federated.adapters.xgboost.events import Bytes, CollectiveCall
from prefect_federated.adapters.xgboost.protocol import (
    DATA_TYPES,
    METHODS,
    REDUCTIONS,
    SERVICE,
    message_types,
)

ADDRESS = "127.0.0.1"
_VALID = timedelta(days=365)  # of a certificate whose key is gone when its training ends
_CLOCK_SKEW = timedelta(hours=1)
_UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
_EXCEPTED = "no_grpc_proxy"
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")

Carry = Callable[[CollectiveCall], Bytes | None]
"""Takes a collective call and returns its result; None if there will be none."""


@contextmanager
def serving(carry: Carry) -> Iterator[Callable[[int, int], dict[str, Any]]]:
    """Runs the server; gives what makes XGBoost's communicator arguments from rank and sites.

    The communicator must be made, and its arguments are of use, before the block that they were
    made in is left; `joining` does both.

    Args:
        carry: Takes each collective call, on a thread of the server's.
    """
    types = message_types()
    server_key, server_certificate = _certified("adapter")
    client_key, client_certificate = _certified("training")
    workers = _OneThread()
    # grpc asks for no more of its pool than `submit`.
    server = grpc.server(cast(ThreadPoolExecutor, workers), options=_UNLIMITED)
    handlers = {method: _handler(method, types, carry) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials(
        [(server_key, server_certificate)], client_certificate, require_client_auth=True
    )
    folder = Path(tempfile.mkdtemp(prefix="prefect-federated-"))  # mode 0700
    try:
        port = server.add_secure_port(f"{ADDRESS}:0", credentials)
        server.start()
        for name, content in (
            ("server.pem", server_certificate),
            ("client.key", client_key),
            ("client.pem", client_certificate),
        ):
            (folder / name).write_bytes(content)

        def arguments(rank: int, sites: int) -> dict[str, Any]:
            return {
                "dmlc_communicator": "federated",
                "federated_server_address": f"{ADDRESS}:{port}",
                "federated_world_size": sites,
                "federated_rank": rank,
                "federated_server_cert_path": str(folder / "server.pem"),
                "federated_client_key_path": str(folder / "client.key"),
                "federated_client_cert_path": str(folder / "client.pem"),
            }

        _pass_by_proxies()
        yield arguments
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        server.stop(grace=None).wait()
        workers.shutdown(wait=False)


@contextmanager
def joining(carry: Carry, rank: int, sites: int) -> Iterator[None]:
    """Makes XGBoost's collective calls of this thread go to `carry`, inside the block.

    Args:
        carry: Takes each collective call, on another thread.
        rank: This site's rank, from 0.
        sites: How many sites there are.
    """
    from xgboost import collective

    with serving(carry) as arguments:
        given = arguments(rank, sites)
        collective.init(**given)
        shutil.rmtree(Path(given["federated_client_key_path"]).parent)  # XGBoost has read them
        try:
            yield
        finally:
            collective.finalize()


def _handler(method: str, types: Any, carry: Carry) -> "grpc.RpcMethodHandler[Any, Any]":
    reply = types[f"{method}Reply"]

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        is_reduction = method == "Allreduce"
        result = carry(
            CollectiveCall(
                method=method,
                sequence=request.sequence_number,
                buffer=np.frombuffer(request.send_buffer, np.uint8),
                data_type=DATA_TYPES[request.data_type] if is_reduction else "",
                reduction=REDUCTIONS[request.reduce_operation] if is_reduction else "",
                root=request.root if method == "Broadcast" else 0,
            )
        )
        if result is None:
            context.abort(grpc.StatusCode.CANCELLED, "the training was ended")
        return reply(receive_buffer=result.tobytes())

    decode, encode = types[f"{method}Request"].FromString, reply.SerializeToString
    return grpc.unary_unary_rpc_method_handler(handle, decode, encode)


class _OneThread(Executor):
    """Runs what it is given on one thread, which never keeps a process from ending."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xgboost-calls", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._waiting.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (given := self._waiting.get()) is not None:
            future, work = given
            try:
                future.set_result(work())
            except BaseException as error:  # belongs to whoever waits for the future
                future.set_exception(error)


def _certified(name: str) -> tuple[bytes, bytes]:
    """Returns a new key and its self-signed certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"xgboost {name}")])
    begin = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(begin + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(ADDRESS))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, certificate.public_bytes(Encoding.PEM)


def _pass_by_proxies() -> None:
    """Keeps XGBoost's client from asking a proxy of the site's for the way to this machine."""
    if not any(os.environ.get(name) for name in _PROXIES):
        return
    excepted = os.environ.get(_EXCEPTED, os.environ.get("no_proxy", "")).split(",")
    if ADDRESS not in excepted:
        os.environ[_EXCEPTED] = ",".join([*filter(None, excepted), ADDRESS])
