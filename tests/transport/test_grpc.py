"""The gRPC driver over real mutual TLS: attaching, breaking, misbehaving."""

import json
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from prefect_federated.errors import (
    AttachRefused,
    ConfigurationError,
    ConnectionFailed,
    FederatedError,
    JobEnded,
)
from prefect_federated.executors import LoadedExecutor, Site, TaskFunction, serve
from prefect_federated.kits import StartupKit
from prefect_federated.messages import Message, SiteFailure, Tensor, Tensors, Update
from prefect_federated.transport import grpc_server
from prefect_federated.transport.calls import Call, CallTerms
from prefect_federated.transport.grpc_client import GrpcLink
from prefect_federated.transport.grpc_server import ATTACH, GrpcEndpoint
from prefect_federated.transport.hub import Hub
from prefect_federated.wire import Frame, body_of, control, encode, kind_of, specs_of
from tests.agents.network import Federation, eventually

JOB = "job-1"
MODEL: dict[str, Tensor] = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def hubs() -> list[Hub]:
    """Returns the hubs of this test."""
    return []


@pytest.fixture
def open_endpoint(kits: Federation, hubs: list[Hub]) -> Iterator[Callable[..., tuple[Hub, int]]]:
    """Opens endpoints of the job, one an attempt; returns the hub and the port."""
    with ExitStack() as stack:

        def open_one(*sites: str, epoch: int = 1) -> tuple[Hub, int]:
            hub = Hub(JOB, epoch, sites or ("site-1", "site-2"))
            endpoint = GrpcEndpoint(hub, kits.kit("server-1"), 2)
            stack.enter_context(endpoint)
            hubs.append(hub)
            return hub, int(endpoint.address.rpartition(":")[2])

        yield open_one


@pytest.fixture
def open_wire() -> Iterator[Callable[[int], "Wire"]]:
    """Opens relays to a port of an endpoint, which the test can cut."""
    with ExitStack() as stack:

        def open_one(port: int) -> Wire:
            wire = Wire(port)
            stack.callback(wire.close)
            return wire

        yield open_one


@dataclass
class RunningSite:
    """A site's process, as a thread: it serves tasks until the job ends."""

    kit: StartupKit
    functions: Mapping[str, TaskFunction]
    end: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        site = Site(self.kit.identity.name, Path(), Path(), {"lr": 0.5})
        try:
            with GrpcLink(self.kit, JOB) as link:
                serve(LoadedExecutor("trial", self.functions), site, link)
        except FederatedError as error:
            self.end = error

    def join(self) -> BaseException | None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.end


@pytest.fixture
def start_site(
    kits: Federation, hubs: list[Hub], open_endpoint: object, open_wire: object
) -> Iterator[Callable[..., RunningSite]]:
    """Starts sites: name, port, functions by kind of site task."""
    started: list[RunningSite] = []

    def start(name: str, port: int, **functions: TaskFunction) -> RunningSite:
        started.append(RunningSite(kits.kit(name, port), functions or {"train": halve}))
        return started[-1]

    yield start
    for hub in hubs:
        hub.end("completed", "the test is over")
    for site in started:
        site.join()


def halve(model: Tensors, site: Site) -> Update:
    return Update({name: np.divide(array, 2) for name, array in model.items()}, weight=2)


def ask(hub: Hub, *sites: str, model: Tensors = MODEL, lost_after_s: float = 30) -> Call:
    eventually(lambda: set(hub.attached()) >= set(sites), f"{sites} attach")
    terms = CallTerms(
        round=1, quorum=0, timeout_s=60, lost_after_s=lost_after_s, expect=specs_of(model)
    )
    return hub.call("train", Message({"config": {"lr": 0.1}}, model), sites, terms)


class Wire:
    """A TCP relay that the test cuts: after so many bytes, or now."""

    def __init__(self, port: int) -> None:
        self.port = port  # of the endpoint; may change
        self.cut_after: dict[str, int] = {}  # "up" or "down" -> bytes until the next cut
        self.cuts = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.port), 5)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    self._open += [near, far]
                for source, target, way in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(
                        target=self._relay, args=(source, target, way), daemon=True
                    ).start()

    def _relay(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                with self._lock:
                    if way in self.cut_after:
                        self.cut_after[way] -= len(part)
                    due = self.cut_after.get(way, 1) <= 0
                if due:
                    self.cut()
                    return
                target.sendall(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        with self._lock:
            self.cuts += 1
            self.cut_after.clear()
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def test_a_task_and_its_update_travel(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    seen: list[tuple[Site, Tensors]] = []

    def train(model: Tensors, site: Site) -> Update:
        seen.append((site, model))
        return Update({"w": model["w"] * 2}, 304, {"loss": 0.25}, {"extra": b"\x00bytes"}, 61)

    site = start_site("site-1", port, train=train)
    (update,) = list(ask(hub, "site-1"))
    assert isinstance(update, Update)
    np.testing.assert_array_equal(update.tensors["w"], MODEL["w"] * 2)
    assert (update.site, update.weight, update.metrics_weight) == ("site-1", 304, 61)
    assert (update.metrics, update.blobs) == ({"loss": 0.25}, {"extra": b"\x00bytes"})
    ((at, model),) = seen
    assert (at.name, at.round, at.config) == ("site-1", 1, {"lr": 0.1})
    assert not model["w"].flags.writeable
    assert hub.can("site-1", "train")
    hub.end("completed", "all rounds are done")
    end = site.join()
    assert isinstance(end, JobEnded)
    assert (end.outcome, str(end)) == ("completed", "the job is completed: all rounds are done")


def test_twenty_megabytes_of_random_tensors_arrive_exactly_on_both_sides(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    random = np.random.default_rng(2)
    model: dict[str, Tensor] = {
        "big": random.normal(size=(1000, 4001)).astype(np.float32),
        "scalar": np.asarray(random.normal()),
        "empty": np.zeros((0, 3), np.int64),
        "odd": np.frombuffer(random.bytes(4_000_003), "u1"),
    }
    hub, port = open_endpoint()

    def train(received: Tensors, site: Site) -> Update:
        for name, array in model.items():
            np.testing.assert_array_equal(received[name], array)
        return Update(
            {name: array[::-1] if array.ndim else array for name, array in received.items()}
        )

    for name in ("site-1", "site-2"):
        start_site(name, port, train=train)
    call = ask(hub, "site-1", "site-2", model=model)
    for update in call:
        assert isinstance(update, Update), update
        for name, array in model.items():
            expected = array[::-1] if array.ndim else array
            np.testing.assert_array_equal(update.tensors[name], expected)
    assert call.reports["site-2"].bytes_received > 20_000_000
    assert call.reports["site-2"].bytes_sent > 20_000_000


def test_a_connection_cut_while_a_site_trains_costs_no_training(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    trained, go_on = [], threading.Event()

    def train(model: Tensors, site: Site) -> Update:
        trained.append(site.round)
        assert go_on.wait(30)
        return halve(model, site)

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    call = ask(hub, "site-1")
    eventually(lambda: trained, "training")
    wire.cut()
    eventually(lambda: not hub.is_attached("site-1"), "the server notices")
    eventually(lambda: hub.is_attached("site-1"), "the site attaches again")
    go_on.set()
    (update,) = list(call)
    assert isinstance(update, Update)
    assert trained == [1]
    assert len(list(ask(hub, "site-1"))) == 1
    hub.end("completed", "done")


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_connection_cut_in_the_middle_of_the_bytes_is_made_up_for(
    way: str,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    model: dict[str, Tensor] = {"w": np.random.default_rng(4).normal(size=1_000_000)}
    trained: list[int] = []

    def train(received: Tensors, site: Site) -> Update:
        trained.append(site.round)
        return Update({"w": received["w"] * 2})

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    eventually(lambda: hub.is_attached("site-1"), "site-1 attaches")
    wire.cut_after[way] = 4_000_000
    replies = list(ask(hub, "site-1", model=model))
    assert wire.cuts == 1
    assert trained == [1]
    (update,) = replies
    assert isinstance(update, Update)
    np.testing.assert_array_equal(update.tensors["w"], model["w"] * 2)
    hub.end("completed", "done")


def test_a_newer_attempt_is_obeyed_and_an_older_one_refused(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, first_port = open_endpoint("site-1", epoch=1)
    second, second_port = open_endpoint("site-1", epoch=2)
    trained, go_on = [], threading.Event()

    def train(model: Tensors, site: Site) -> Update:
        trained.append(float(model["w"][0, 0]))
        assert go_on.wait(30)
        return Update(model)

    wire = open_wire(first_port)
    start_site("site-1", wire.own_port, train=train)
    old_call = ask(first, "site-1", model={"w": MODEL["w"] + 100})
    eventually(lambda: trained, "training for the first attempt")
    wire.port = second_port
    wire.cut()
    new_call = ask(second, "site-1", model={"w": MODEL["w"] + 200})
    go_on.set()
    (update,) = list(new_call)  # not the first attempt's, which the site dropped
    assert isinstance(update, Update)
    assert update.tensors["w"][0, 0] == 200
    assert trained == [100, 200]
    assert old_call.reports["site-1"].bytes_received == 0

    wire.port = first_port
    wire.cut()
    refusal = "'site-1' has seen attempt 2 of job job-1; this is attempt 1."
    eventually(lambda: refusal in caplog.text, "the first attempt's endpoint refuses the site")
    assert not first.is_attached("site-1")
    assert trained == [100, 200]

    wire.port = second_port
    wire.cut()
    assert len(list(ask(second, "site-1"))) == 1
    second.end("completed", "done")


def test_an_executor_that_raises_gives_its_type_and_first_line_and_no_traceback(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint()

    def train(model: Tensors, site: Site) -> Update:
        raise ValueError("age is missing\nin the row of patient 4711")

    start_site("site-1", port, train=train)
    start_site("site-2", port)
    replies = {reply.site: reply for reply in ask(hub, "site-1", "site-2")}
    assert replies["site-1"] == SiteFailure("site-1", "ValueError: age is missing")
    assert isinstance(replies["site-2"], Update)
    assert "in the row of patient 4711" in caplog.text  # the whole of it stays at the site


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Update(MODEL, metrics={"loss": float("nan")}), "the metric 'loss' is nan"),
        (Update(MODEL, metrics={"loss": None}), "the metric 'loss' is a NoneType"),  # type: ignore[dict-item]
        (Update(MODEL, weight=float("inf")), "the weight is inf"),
        (Update({"w": [1.0]}), "tensor 'w' is a list; give a NumPy array"),  # type: ignore[dict-item]
        (Update({"w": np.array(["a"])}), "dtype <U1, which does not travel"),
        (Update(MODEL, weight=0), "sent the weight 0.0; it must be above 0"),
        (Update({"w": np.full((2, 3), np.nan, np.float32)}), "holds NaN or infinity"),
        (None, "returned NoneType for the site task 'train'; return an Update"),
    ],
)
def test_an_answer_that_cannot_be_is_a_failure_and_the_site_goes_on(
    answer: Update | None,
    says: str,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    hub, port = open_endpoint("site-1")
    answers = iter([answer, Update(MODEL)])
    start_site("site-1", port, train=lambda model, site: next(answers))
    (failure,) = list(ask(hub, "site-1"))
    assert isinstance(failure, SiteFailure)
    assert says in failure.reason
    assert [type(reply) for reply in ask(hub, "site-1")] == [Update]


@pytest.mark.parametrize(("name", "role"), [("alice", "project_admin"), ("server-1", "server")])
def test_only_a_sites_certificate_attaches(
    name: str,
    role: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
) -> None:
    hub, port = open_endpoint("site-1", name)
    with GrpcLink(kits.kit(name, port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match=f"'{name}' is a {role}; only sites may attach"):
            link.receive()
    assert hub.attached() == []


def test_a_certificate_of_no_known_role_does_not_attach(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]], tmp_path: Path
) -> None:
    hub, port = open_endpoint("site-1")
    kit = kits.reissued(kits.kit("site-1", port), tmp_path, role="janitor")
    with GrpcLink(kit, JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match="janitor"):
            link.receive()
    assert hub.attached() == []


def test_a_site_of_another_job_does_not_attach(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-2")
    with GrpcLink(kits.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match=r"'site-1' is not one of this job's sites"):
            link.receive()
    with GrpcLink(kits.kit("site-2", port), "job-2") as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match="this is job job-1, site 'site-2' wants 'job-2'"):
            link.receive()
    assert hub.attached() == []


def test_a_job_that_is_over_says_so_to_a_site_that_comes_late(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    hub.end("completed", "all rounds are done")
    with GrpcLink(kits.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(JobEnded, match="all rounds are done"):
            link.receive()


def test_a_foreign_certificate_gets_nothing(
    kits: Federation, strangers: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    ours, theirs = kits.kit("site-1", port), strangers.kit("site-1", port)
    foreign = replace(theirs, ca=ours.ca, federation=ours.federation)
    with raw_stream(foreign) as stream:
        stream.send(hello())
        assert stream.status() is grpc.StatusCode.UNAVAILABLE
    assert stream.frames == []
    with raw_stream(ours, anonymous=True) as stream:
        stream.send(hello())
        assert stream.status() is grpc.StatusCode.UNAVAILABLE
    assert hub.attached() == []


def test_a_site_does_not_talk_to_a_foreign_server_and_says_why(
    strangers: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint("site-1")
    with GrpcLink(strangers.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        eventually(lambda: "cannot be reached" in caplog.text, "the site says so")
    assert f"job job-1 at 127.0.0.1:{port} cannot be reached (UNAVAILABLE: " in caplog.text
    assert hub.attached() == []


def test_a_kit_that_cannot_be_read_any_more_ends_the_link(kits: Federation, tmp_path: Path) -> None:
    kit = replace(kits.kit("site-1", 1), private_key=tmp_path / "gone.key")
    with GrpcLink(kit, JOB) as link:
        link.attach(("train",))
        with pytest.raises(ConnectionFailed, match=r"gone\.key"):
            link.receive()


def test_an_address_that_is_not_this_machines_names_the_setting(kits: Federation) -> None:
    with pytest.raises(ConfigurationError, match="PREFECT_FEDERATED_ENDPOINT_HOST"):
        GrpcEndpoint(Hub(JOB, 1, ()), kits.kit("server-1"), 1, host="203.0.113.7")


# A site that misbehaves: raw frames


class RawStream:
    """A client that sends what it likes."""

    def __init__(self, call: object, outbox: "queue.SimpleQueue[bytes | None]") -> None:
        self.call = call
        self.frames: list[bytes] = []
        self._outbox = outbox
        self._code: grpc.StatusCode | None = None
        self.details = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            for frame in self.call:  # type: ignore[attr-defined]
                self.frames.append(frame)
            self._code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self._code, self.details = error.code(), str(error.details())

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._outbox.put(frame)

    def half_close(self) -> None:
        self._outbox.put(None)

    def task(self) -> str:
        """Waits for a task; returns its id."""
        frame = eventually(
            lambda: next((f for f in self.frames if kind_of(f) is Frame.TASK), None), "a task"
        )
        assert frame is not None
        header = body_of(frame)["header"]
        assert isinstance(header, dict)
        return str(header["id"])

    def status(self) -> grpc.StatusCode:
        self._reader.join(30)
        assert self._code is not None
        return self._code


@contextmanager
def raw_stream(kit: StartupKit, *, anonymous: bool = False) -> Iterator[RawStream]:
    own = () if anonymous else (kit.private_key.read_bytes(), kit.certificate.read_bytes())
    server = kit.servers[0]
    channel = grpc.secure_channel(
        f"{server.host}:{server.port}",
        grpc.ssl_channel_credentials(kit.ca.read_bytes(), *own),
        options=[
            ("grpc.ssl_target_name_override", kit.job_name(JOB)),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    attach: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ATTACH)
    call = attach(iter(outbox.get, None))
    stream = RawStream(call, outbox)
    try:
        yield stream
    finally:
        call.cancel()
        outbox.put(None)
        stream.status()
        channel.close()


def hello(**changes: object) -> bytes:
    body = {"protocol": 1, "job": JOB, "epoch": 0, "holding": [], "kinds": ["train"]}
    return control(Frame.HELLO, {**body, **changes})


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"", "must begin with a hello|unknown kind"),
        (b"\x16\x03\x01garbage", "protocol version 1"),
        (b"H{", "not JSON"),
        (b"H[]", "not an object"),
        (b"H{}", "must name `protocol`"),
        (hello(epoch="x"), "must name `protocol`"),
        (hello(holding={}), "must name `protocol`"),
        (control(Frame.HEARTBEAT), "must begin with a hello"),
        (Frame.HELLO.value + b"[" * 50_000, "not JSON"),
    ],
)
def test_a_first_frame_of_garbage_is_refused_with_the_reason(
    first: bytes,
    says: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(first)
        assert stream.status() is grpc.StatusCode.INVALID_ARGUMENT
    assert any(part in stream.details for part in says.split("|"))
    assert hub.attached() == []


def test_a_name_in_the_hello_does_not_make_a_site_another(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint()
    with raw_stream(kits.kit("site-2", port)) as stream:
        stream.send(hello(site="site-1", name="site-1"))
        eventually(hub.attached, "the site attaches")
        assert hub.attached() == ["site-2"]


def _head(task: str, size: int, table_size: int | None = None) -> bytes:
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, table_size or size]}
    head = {"header": {"id": task}, "tensors": {"w": entry}, "blobs": {}}
    return Frame.UPDATE.value + json.dumps(head).encode()


def _real(task: str) -> tuple[bytes, bytes]:
    head, chunk = encode(Frame.UPDATE, Message({"id": task}, MODEL)).frames()
    return head, chunk


MISBEHAVIOUR: dict[str, tuple[Callable[[str], tuple[bytes, ...]], str]] = {
    "ten terabytes": (
        lambda task: (_head(task, 10 * 10**12),),
        "a message claims 10,000,000,000,000 bytes; the limit is 17,179,869,184",
    ),
    "offsets that lie": (
        lambda task: (_head(task, 24, 10**13),),
        "claims bytes [0, 10000000000000]",
    ),
    "more data than announced": (
        lambda task: (_real(task)[0], _real(task)[1] + b"more"),
        "4 bytes more than the head announced (24)",
    ),
    "an update that breaks off": (
        lambda task: (_real(task)[0], _real(task)[1][:9], control(Frame.HEARTBEAT)),
        "an update broke off before its 24 bytes were there (a HEARTBEAT frame came instead)",
    ),
    "data without a head": (lambda task: (b"Ddata",), "sent an unexpected DATA frame"),
    "a head that is no JSON": (lambda task: (b"U{{{{",), "a frame's body is not JSON"),
    "an unknown frame": (lambda task: (b"?",), "frame of unknown kind b'?'"),
    "a wrong shape": (lambda task: (_head(task, 24), b"D" + bytes(24)), "tensor 'w' is U8 (24,)"),
    "a NaN in the head": (
        lambda task: (b'U{"header":{"weight":NaN},"tensors":{},"blobs":{}}',),
        "NaN is not a finite number",
    ),
}


@pytest.mark.parametrize("case", list(MISBEHAVIOUR))
def test_a_site_that_misbehaves_fails_alone(
    case: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    frames, says = MISBEHAVIOUR[case]
    hub, port = open_endpoint()
    start_site("site-2", port)
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1", "site-2")
        stream.send(*frames(stream.task()))
        replies = {reply.site: reply for reply in call}
        assert isinstance(replies["site-2"], Update)
        failure = replies["site-1"]
        assert isinstance(failure, SiteFailure)
        assert says in failure.reason
    assert [type(reply) for reply in ask(hub, "site-2")] == [Update]


def test_a_stream_that_ends_in_the_middle_of_an_update_counts_as_lost(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1", lost_after_s=0.2)
        head, chunk = _real(stream.task())
        stream.send(head, chunk[:7])
        stream.half_close()
        assert list(call) == [SiteFailure("site-1", "no connection for 0.2 s")]
        assert stream.status() is grpc.StatusCode.OK


def test_a_stream_that_stays_silent_is_ended(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_server, "SILENCE_S", 0.1)
    hub, port = open_endpoint()
    with (
        raw_stream(kits.kit("site-1", port)) as without_hello,
        raw_stream(kits.kit("site-2", port)) as with_hello,
    ):
        with_hello.send(hello())
        eventually(hub.attached, "a site attaches")
        assert with_hello.status() is grpc.StatusCode.CANCELLED
        assert without_hello.status() is grpc.StatusCode.CANCELLED
        eventually(lambda: not hub.attached(), "the site counts as gone")


def test_a_servers_own_error_ends_one_stream_and_says_nothing_of_its_inside(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint("site-1")

    def broken(*_: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(hub, "receive", broken)
    with raw_stream(kits.kit("site-1", port)) as stream, caplog.at_level(logging.ERROR):
        stream.send(hello())
        call = ask(hub, "site-1")
        stream.send(*_real(stream.task()))
        assert list(call) == [SiteFailure("site-1", "internal error at the server: KeyError")]
        assert stream.status() is grpc.StatusCode.INVALID_ARGUMENT
    assert "inside" not in stream.details
    assert "inside" in caplog.text
