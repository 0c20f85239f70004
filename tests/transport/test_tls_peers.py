"""Peers of a job's endpoint that are not as they should be: strangers, frozen ones, liars."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from prefect_federated.frames import Frame, control, kind_of, start
from prefect_federated.messages import Message, SiteFailure, Update
from prefect_federated.transport import connection, tls_server
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.site_stream import SiteStream
from prefect_federated.wire import encode
from tests.agents.network import Federation, eventually, tls
from tests.transport.tls_trial import JOB, MODEL, RunningSite, ask, hello, raw_stream


def test_a_foreign_certificate_gets_nothing(
    kits: Federation, strangers: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    ours, theirs = kits.kit("site-1", port), strangers.kit("site-1", port)
    foreign = replace(theirs, ca=ours.ca, federation=ours.federation)
    with raw_stream(foreign) as stream:
        stream.send(hello())
        assert stream.end() == ("", "")
    assert stream.frames == []
    with raw_stream(ours, anonymous=True) as stream:
        stream.send(hello())
        assert stream.end() == ("", "")
    assert stream.frames == []
    assert hub.attached() == []


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"?" + bytes(4), "unknown kind"),
        (b"\x16\x03\x01garbage", "protocol version 3"),
        (start(Frame.HELLO, 1) + b"{", "not JSON"),
        (start(Frame.HELLO, 2) + b"[]", "not an object"),
        (control(Frame.HELLO, {}), "must name `protocol`"),
        (hello(epoch="x"), "must name `protocol`"),
        (hello(holding={}), "must name `protocol`"),
        (control(Frame.HEARTBEAT), "must begin with a hello"),
        (control(Frame.OFFER, {}), "must begin with a hello"),
        (control(Frame.PAYLOAD, {"id": "1.1", "offset": 0}), "must begin with a hello"),
        (start(Frame.HELLO, 50_000) + b"[" * 50_000, "not JSON"),
        (start(Frame.HELLO, 1 << 30), "announces 1,073,741,824 bytes; the limit is 1,048,576"),
        (start(Frame.OFFER, 1 << 31), "announces 2,147,483,648 bytes; the limit is 16,777,216"),
        (start(Frame.DATA, 3) + b"abc", "where no message's payload was to follow"),
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
        outcome, reason = stream.end()
    assert outcome == "protocol"
    assert says in reason
    assert hub.attached() == []


@pytest.mark.parametrize(
    ("says_hello", "upgrade"),
    [
        (hello(protocol=1), "site"),
        (hello(protocol=1, job="another"), "site"),
        (control(Frame.HELLO, {"protocol": 4}), "server"),
    ],
)
def test_another_protocol_version_is_refused_with_what_to_upgrade(
    says_hello: bytes,
    upgrade: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(says_hello)
        outcome, reason = stream.end()
    assert outcome == "refused"
    assert reason.endswith(f"upgrade prefect-federated at the {upgrade}.")
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
    return control(Frame.UPDATE, {"header": {"id": task}, "tensors": {"w": entry}, "blobs": {}})


def _data(body: bytes) -> bytes:
    return start(Frame.DATA, len(body)) + body


def _real(task: str) -> tuple[bytes, bytes]:
    encoded = encode(Frame.UPDATE, Message({"id": task}, MODEL))
    return encoded.head, b"".join(encoded.payload)


def _raw(kind: Frame, body: bytes) -> bytes:
    return start(kind, len(body)) + body


MISBEHAVIOUR: dict[str, tuple[Callable[[str], tuple[bytes, ...]], str]] = {
    "ten terabytes": (
        lambda task: (_head(task, 10 * 10**12),),
        "a message claims 10,000,000,000,000 bytes; the limit is 17,179,869,184",
    ),
    "offsets that lie": (
        lambda task: (_head(task, 24, 10**13),),
        "claims bytes [0, 10000000000000]",
    ),
    "a large update that was not offered": (
        lambda task: (_head(task, 1 << 20),),
        "an update of 1,048,576 bytes came unasked; above 65,536 it must be offered",
    ),
    "more data than announced": (
        lambda task: (_real(task)[0], _data(_real(task)[1] + b"more")),
        "4 bytes more than the head announced (24)",
    ),
    "data after the end": (
        lambda task: (control(Frame.HEARTBEAT), _data(b"data")),
        "where no message's payload was to follow",
    ),
    "a data frame that is too long": (
        lambda task: (_real(task)[0], start(Frame.DATA, 1 << 20)),
        "a frame of kind DATA announces 1,048,576 bytes",
    ),
    "a second hello": (lambda task: (hello(),), "sent an unexpected HELLO frame"),
    "a controller's frame": (
        lambda task: (control(Frame.GO, {"id": task, "offset": 0}),),
        "sent an unexpected GO frame",
    ),
    "a payload without an offset": (
        lambda task: (control(Frame.PAYLOAD, {"id": task}),),
        "must have `id` and `offset`",
    ),
    "a head that is no JSON": (
        lambda task: (_raw(Frame.UPDATE, b"{{{{"),),
        "a frame's body is not JSON",
    ),
    "an unknown frame": (lambda task: (b"?" + bytes(4),), "frame of unknown kind b'?'"),
    "a wrong shape": (lambda task: (_head(task, 24), _data(bytes(24))), "tensor 'w' is U8 (24,)"),
    "a NaN in the head": (
        lambda task: (_raw(Frame.UPDATE, b'{"header":{"weight":NaN},"tensors":{},"blobs":{}}'),),
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


def test_a_stranger_with_a_sites_certificate_does_not_put_the_site_out_of_the_job(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    hub, port = open_endpoint("site-1")
    start_site("site-1", port)
    assert [type(reply) for reply in ask(hub, "site-1")] == [Update]
    with raw_stream(kits.kit("site-1", port)) as stranger:
        stranger.send(hello(kinds=["sing"]))
        eventually(lambda: hub.can("site-1", "sing"), "the stranger takes the place")
        stranger.send(b"?" * 100)
        eventually(lambda: hub.can("site-1", "train"), "the site comes back")
    assert [type(reply) for reply in ask(hub, "site-1")] == [Update]


def test_a_payload_that_the_server_has_taken_back_is_read_to_nowhere(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1")
        task = stream.task()
        stream.send(control(Frame.PAYLOAD, {"id": "9.9", "offset": 0}), _data(bytes(100_000)))
        head, payload = _real(task)
        stream.send(head, _data(payload))
        assert isinstance(next(iter(call)), Update)


def test_control_frames_may_stand_between_the_data_of_an_update(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1")
        head, payload = _real(stream.task())
        for part in (head, _data(payload[:7]), control(Frame.HEARTBEAT), _data(payload[7:])):
            for byte in part:
                stream.send(bytes([byte]))
        (update,) = list(call)
        assert isinstance(update, Update)
        np.testing.assert_array_equal(update.tensors["w"], MODEL["w"])
        assert stream.wait_for(Frame.ACK) == {"id": call.id, "rejected": None}


def test_a_stream_that_ends_in_the_middle_of_an_update_counts_as_lost(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1", lost_after_s=0.2)
        head, payload = _real(stream.task())
        stream.send(head, _data(payload)[:9])
        stream.half_close()
        assert list(call) == [SiteFailure("site-1", "no connection for 0.2 s")]


def test_a_stream_that_stays_silent_is_ended(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.5)
    hub, port = open_endpoint()
    with (
        raw_stream(kits.kit("site-1", port)) as without_hello,
        raw_stream(kits.kit("site-2", port)) as with_hello,
    ):
        with_hello.send(hello())
        eventually(hub.attached, "a site attaches")
        assert with_hello.end() == ("", "")
        assert without_hello.end() == ("", "")
        eventually(lambda: not hub.attached(), "the site counts as gone")


def test_who_does_not_introduce_itself_is_let_go_and_holds_nobody_up(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls_server, "HANDSHAKE_S", 3.0)
    hub, port = open_endpoint("site-1")
    strangers = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(80)]
    try:
        for stranger in strangers:
            stranger.send(b"\x16")  # the first byte of a handshake, and no more
        with raw_stream(kits.kit("site-2", port)) as slow:  # hands shaken, but a hello in crumbs
            slow.send(hello()[:20])
            began = time.monotonic()
            start_site("site-1", port)
            assert len(list(ask(hub, "site-1"))) == 1
            assert time.monotonic() - began < 3.0
            for stranger in strangers:
                assert stranger.recv(1) == b""  # closed, the first 16 at once, by the bound
            assert slow.end() == ("", "")
    finally:
        for stranger in strangers:
            stranger.close()


def test_bytes_that_are_no_tls_end_their_own_connection_only(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    start_site("site-1", port)
    eventually(lambda: hub.is_attached("site-1"), "the site attaches")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff" * 100_000):
        with socket.create_connection(("127.0.0.1", port), 20) as stranger:
            stranger.sendall(garbage)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert hub.is_attached("site-1")
    assert len(list(ask(hub, "site-1"))) == 1


def test_a_site_that_reads_nothing_holds_up_neither_the_hub_nor_the_others(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    hub, port = open_endpoint()
    start_site("site-2", port)
    with tls(kits.kit("site-1", port), port, f"{JOB}.jobs.trial") as frozen:
        frozen.sendall(hello())
        eventually(lambda: len(hub.attached()) == 2, "both attach")
        began = time.monotonic()
        call = ask(hub, "site-1", "site-2", model={"w": np.zeros(8_000_000)})
        assert time.monotonic() - began < 2
        replies = iter(call)
        assert isinstance(first := next(replies), Update)
        assert first.site == "site-2"
        assert hub.is_attached("site-1")
        call.cancel("the test is over")


def test_a_servers_own_error_ends_one_stream_and_says_nothing_of_its_inside(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint("site-1")

    def broken(*_: object, **__: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(hub, "offer", broken)
    with raw_stream(kits.kit("site-1", port)) as stream, caplog.at_level(logging.ERROR):
        stream.send(hello())
        call = ask(hub, "site-1")
        stream.send(*_real(stream.task()))
        assert list(call) == [SiteFailure("site-1", "internal error at the server: KeyError")]
        outcome, reason = stream.end()
        assert outcome == "internal"
    assert reason == "internal error at the server: KeyError; see its log."
    assert "inside" in caplog.text


@pytest.mark.parametrize("kind", [Frame.OFFER, Frame.UPDATE])
def test_a_flood_of_updates_that_nobody_asked_for_ends_the_connection(
    kind: Frame, kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    head = encode(kind, Message({"id": "1.9", "notes": "x" * 100_000})).head
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        eventually(hub.attached, "the site attaches")
        stream.send(*[head] * 100)
        outcome, reason = stream.end()
    assert outcome == "protocol"
    assert "20 updates that nobody had asked for came within 10 s" in reason
    assert len(hub.refusals) < 20
    eventually(lambda: not hub.attached(), "the site counts as gone")


def test_late_answers_of_a_quick_site_are_no_flood(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with raw_stream(kits.kit("site-1", port)) as stream:

        def has_come(number: int) -> bool:
            return sum(kind_of(frame) is Frame.TASK for frame in stream.frames) > number

        stream.send(hello())
        eventually(hub.attached, "the site attaches")
        for number in range(30):
            call = ask(hub, "site-1")
            eventually(partial(has_come, number), "the task comes")
            call.cancel("too late")
            head, payload = _real(call.id)
            stream.send(head, _data(payload))
        eventually(lambda: len(hub.refusals) == 30, "each is refused")
        assert hub.attached() == ["site-1"]


def test_a_connection_that_waited_for_an_earlier_one_does_not_take_a_later_ones_place(
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub, port = open_endpoint("site-1")
    waits, may_go_on = threading.Event(), threading.Event()
    replace_earlier = SiteStream.replace
    names = iter("AB")

    def slow(self: SiteStream, timeout_s: float) -> None:
        is_first = next(names, "") == "A"
        replace_earlier(self, 0.1)
        if is_first:  # the second connection waits for the first to go deaf
            waits.set()
            may_go_on.wait(20)

    monkeypatch.setattr(SiteStream, "replace", slow)
    kit = kits.kit("site-1", port)
    with raw_stream(kit) as first, raw_stream(kit) as second, raw_stream(kit) as third:
        first.send(hello(kinds=["first"]))
        eventually(lambda: hub.can("site-1", "first"), "the first attaches")
        second.send(hello(kinds=["second"]))
        assert waits.wait(20)
        third.send(hello(kinds=["third"]))
        third.wait_for(Frame.WELCOME)
        may_go_on.set()
        eventually(
            lambda: all(thread.name != "attach-2" for thread in threading.enumerate()),
            "the second connection ends",
        )
        assert hub.can("site-1", "third")
        assert hub.attached() == ["site-1"]
        assert not [frame for frame in third.frames if kind_of(frame) is Frame.END]
