"""What the fuzz tests feed to the decoders, and what must hold for any bytes.

The tests run each target for a moment, `benchmarks.fuzz` for as long as one likes.
"""

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from prefect_federated.agents.client_hello import is_decided, server_name
from prefect_federated.errors import ProtocolError
from prefect_federated.frames import Frame, Limits, body_of, control, start
from prefect_federated.transport.frame_reader import FrameReader
from prefect_federated.transport.notes import as_body, notes_of
from prefect_federated.wire import Incoming, begin

SMALL = Limits(message_bytes=1 << 20, head_bytes=1 << 16, tensors=50, dimensions=8)

json_values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "C64", "?"]) | json_values,
        "shape": st.lists(st.integers(-2, 9) | st.integers(), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-2, 100), max_size=3) | json_values,
    }
)
tables = st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3)
bodies = st.one_of(
    st.binary(max_size=200),
    st.fixed_dictionaries(
        {
            "header": st.just({}) | json_values,
            "tensors": tables | json_values,
            "blobs": st.dictionaries(st.text(max_size=3), st.integers() | json_values, max_size=3)
            | json_values,
        }
    ).map(lambda body: json.dumps(body).encode()),
)
chunks = st.lists(st.binary(max_size=60), max_size=4)


def frame(kind: Frame, body: bytes) -> bytes:
    """Returns a frame with any bytes as its body."""
    return start(kind, len(body)) + body


def fill(incoming: Incoming, payload: bytes | memoryview) -> None:
    """Puts bytes in place, as a connection does."""
    left = memoryview(payload)
    if not left:
        incoming.place(0)
    while left:
        place = incoming.place(left.nbytes)
        place[:] = left[: place.nbytes]
        incoming.advance(place.nbytes)
        left = left[place.nbytes :]


def check_decoder(body: bytes, parts: Sequence[bytes]) -> None:
    """Any head and any payload give a message, or a `ProtocolError`."""
    try:
        incoming = begin(frame(Frame.UPDATE, body), SMALL)
        assert incoming.payload_bytes <= SMALL.message_bytes
        incoming.allocate()
        for part in parts:
            fill(incoming, part)
        incoming.message()
    except ProtocolError:
        return
    assert incoming.payload_bytes == sum(map(len, parts))


# What a site says while it works

names = st.sampled_from(["loss", "", "a\nb", "x" * 201, "\ud800"]) | st.text(max_size=5)
values = st.sampled_from(["nan", "inf", "-inf", "NaN", 10**400, True, 1e309]) | json_values
numbers = st.floats() | st.integers() | json_values
entries_of_notes = st.fixed_dictionaries(
    {"time": st.floats(0, 1e11) | numbers},
    optional={
        "metrics": st.dictionaries(names, values | st.floats(), max_size=3) | json_values,
        "step": numbers,
        "progress": st.tuples(numbers, numbers, names).map(list) | json_values,
        "more": json_values,
    },
)
possible = st.fixed_dictionaries(
    {
        "time": st.floats(0, 1e10),
        "metrics": st.dictionaries(
            st.text("ab é", min_size=1, max_size=3),
            st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["nan", "-inf"]),
            min_size=1,
            max_size=3,
        ),
        "step": st.none() | st.integers(-5, 5),
    }
) | st.just({"time": 0, "progress": [1, 2.5, "epoch"]})
bodies_of_notes = st.one_of(
    st.fixed_dictionaries(
        {"id": st.text(max_size=5), "notes": st.lists(possible, max_size=3)},
        optional={"dropped": st.integers(0, 9)},
    ),
    st.fixed_dictionaries(
        {"id": st.text(max_size=5) | json_values},
        optional={
            "notes": st.lists(possible | entries_of_notes, max_size=3) | json_values,
            "dropped": numbers,
        },
    ),
)


def check_notes(body: Mapping[str, Any]) -> None:
    """Any body gives notes that are as they must be, and travel again, or a `ProtocolError`."""
    try:
        notes = notes_of(body_of(frame(Frame.NOTES, json.dumps(body).encode())))
    except ProtocolError:
        return
    for note in notes.notes:
        assert bool(note.metrics) == (note.progress is None)
        assert all(name.isprintable() for name in note.metrics)
        assert all(isinstance(value, float) for value in note.metrics.values())
    again = notes_of(body_of(control(Frame.NOTES, as_body(notes))))
    assert repr(again) == repr(notes)  # NaN is not itself


# The frames of a connection


def _small_head(size: int) -> dict[str, object]:
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    return {"header": {"id": "1"}, "tensors": {"w": entry}, "blobs": {}}


frames = st.one_of(
    st.builds(frame, st.sampled_from(Frame), st.binary(max_size=300)),
    st.builds(lambda size: control(Frame.UPDATE, _small_head(size)), st.integers(0, 400)),
    st.builds(lambda size: control(Frame.TASK, _small_head(size)), st.integers(0, 1 << 40)),
    st.builds(lambda at: control(Frame.PAYLOAD, {"id": "1", "offset": at}), st.integers(0, 400)),
    st.builds(lambda size: frame(Frame.DATA, bytes(size)), st.integers(0, 400)),
    st.builds(lambda kind, size: start(kind, size), st.sampled_from(Frame), st.integers(0, 9999)),
    st.binary(max_size=30),
)
streams = st.lists(frames, max_size=8).map(b"".join)
cuts = st.lists(st.integers(0, 3000), max_size=8)


class Recorder:
    """A receiver that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def begin(self, kind: Frame, frame: bytes) -> Incoming:
        self.seen.append(("begin", frame))
        if kind is Frame.PAYLOAD:
            incoming = begin(control(Frame.TASK, _small_head(100)), SMALL)
        else:
            incoming = begin(frame, SMALL)
        incoming.allocate()
        return incoming

    def control(self, kind: Frame, frame: bytes) -> None:
        self.seen.append((kind.name, body_of(frame, SMALL)))

    def complete(self, incoming: Incoming) -> None:
        tensors = incoming.message().tensors
        self.seen.append(("message", {name: array.tobytes() for name, array in tensors.items()}))


def read_in_parts(stream: bytes, places: Sequence[int]) -> list[tuple[str, object]]:
    """Returns what a frame reader makes of a stream that arrives in these parts."""
    recorder = Recorder()
    reader = FrameReader(recorder, SMALL)
    bounds = sorted({0, len(stream), *(place for place in places if place < len(stream))})
    try:
        for begins, ends in pairwise(bounds):
            left = memoryview(stream)[begins:ends]
            while left:
                place = reader.place()[: left.nbytes]
                assert place.nbytes > 0
                place[:] = left[: place.nbytes]
                reader.advance(place.nbytes)
                left = left[place.nbytes :]
    except ProtocolError as error:
        recorder.seen.append(("error", str(error)))
    return recorder.seen


def check_frame_reader(stream: bytes, places: Sequence[int]) -> None:
    """However a stream is cut, the reader makes the same of it, or the same error."""
    whole, parts = read_in_parts(stream, ()), read_in_parts(stream, places)
    assert repr(parts) == repr(whole)  # NaN is not itself


# The first bytes of a TLS connection


def _client_hello(name: str) -> bytes:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def _changed(hello: bytes, changes: Mapping[int, int], end: int) -> bytes:
    changed = bytearray(hello)
    for place, value in changes.items():
        changed[place % len(changed)] = value
    return bytes(changed[:end])


_HELLO = _client_hello("job-1.jobs.trial")
hellos = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=400).map(lambda tail: b"\x16\x03\x01" + tail),
    st.builds(
        _changed,
        st.just(_HELLO),
        st.dictionaries(st.integers(0, 600), st.integers(0, 255), max_size=5),
        st.integers(0, 700),
    ),
)


def check_client_hello(received: bytes, more: bytes) -> None:
    """Any bytes ask for a name or for none, and what is decided does not change."""
    name = server_name(received)
    assert name is None or name.isascii()
    if is_decided(received):
        assert is_decided(received + more)
        assert server_name(received + more) == name


TARGETS: Mapping[str, tuple[Callable[..., None], tuple[SearchStrategy[Any], ...]]] = {
    "decoder": (check_decoder, (bodies, chunks)),
    "notes": (check_notes, (bodies_of_notes,)),
    "frame reader": (check_frame_reader, (streams, cuts)),
    "client hello": (check_client_hello, (hellos, st.binary(max_size=50))),
}
"""What is checked, and the strategies of its arguments."""
