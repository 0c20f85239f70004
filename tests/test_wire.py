"""The wire format: what goes in comes out, and no bytes whatever do harm."""

import json
import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import CONTROL_BYTES, DATA_BYTES, read_start, start
from prefect_federated.messages import JsonValue, Message, Tensor
from prefect_federated.wire import (
    CHUNK_BYTES,
    Encoded,
    Frame,
    Incoming,
    begin,
    body_of,
    control,
    encode,
    kind_of,
    specs_of,
)
from tests.fuzzing import SMALL, bodies, check_decoder, chunks, fill, frame

DTYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8")


def payload_of(encoded: Encoded, offset: int = 0) -> bytes:
    return b"".join(part for chunk in encoded.chunks(offset) for part in chunk)


def travelled(message: Message) -> Message:
    """Encodes a message, and returns what the other side reads."""
    encoded = encode(Frame.UPDATE, message)
    assert kind_of(encoded.head) is Frame.UPDATE
    incoming = begin(encoded.head)
    incoming.allocate()
    for chunk in encoded.chunks():
        fill(incoming, b"".join(chunk))
    return incoming.message()


def head_frame(tensors: object, blobs: object = None, header: object = None) -> bytes:
    body = {"header": header or {}, "tensors": tensors, "blobs": blobs or {}}
    return frame(Frame.UPDATE, json.dumps(body).encode())


def entry(dtype: str, shape: Sequence[object], begin_at: int, end_at: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin_at, end_at]}


def assert_same(got: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> None:
    assert list(got) == list(sent)
    for name, array in sent.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("<")
        assert got[name].tobytes() == array.astype(got[name].dtype).tobytes()


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5)])
def test_every_dtype_and_shape_arrives_bit_for_bit(code: str, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    bits = np.random.default_rng(7).bytes(size * np.dtype(code).itemsize)
    array = np.frombuffer(bits, "u1").view("u1")
    tensor = (array & 1).view("?") if code == "?" else array.view(code)
    sent = {"t": tensor.reshape(shape)}
    assert_same(travelled(Message({}, sent)).tensors, sent)


@pytest.mark.parametrize("code", DTYPES)
def test_big_endian_arrays_arrive_with_their_values(code: str) -> None:
    sent = np.arange(12).reshape(3, 4).astype(np.dtype(code).newbyteorder(">"))
    got = travelled(Message({}, {"t": sent})).tensors["t"]
    assert got.dtype == np.dtype(code)
    np.testing.assert_array_equal(got, sent)


def test_arrays_that_are_not_contiguous_arrive_with_their_values() -> None:
    base = np.random.default_rng(1).normal(size=(40, 50, 3))
    sent: dict[str, Tensor] = {
        "slice": base[3:30:4, ::-2, 1],
        "fortran": np.asfortranarray(base[..., 0]),
        "transposed": base.T,
        "broadcast": np.broadcast_to(np.float32(1.5), (4, 5)),
    }
    got = travelled(Message({}, sent)).tensors
    for name, array in sent.items():
        np.testing.assert_array_equal(got[name], array)


def test_an_array_that_is_contiguous_is_not_copied_to_be_encoded() -> None:
    array = np.zeros(1000, np.float32)
    view = encode(Frame.TASK, Message({}, {"t": array})).payload[0]
    array[3] = 1
    assert np.frombuffer(view, np.float32)[3] == 1


def test_tensors_and_blobs_that_span_chunks_arrive_whole_in_chunks_of_a_frame() -> None:
    random = np.random.default_rng(5)
    sizes = (0, 1, CHUNK_BYTES - 2, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 17, 5, 300_001, 0)
    sent: dict[str, Tensor] = {
        f"t{i}": np.frombuffer(random.bytes(s), "u1") for i, s in enumerate(sizes)
    }
    blobs = {"empty": b"", "model": random.bytes(CHUNK_BYTES + 1)}
    message = Message({"id": "1.1"}, sent, blobs)
    encoded = encode(Frame.TASK, message)
    lengths = [sum(part.nbytes for part in chunk) for chunk in encoded.chunks()]
    got = travelled(message)
    assert set(lengths[:-1]) == {CHUNK_BYTES}
    assert sum(lengths) == message.size_bytes == encoded.payload_bytes
    assert_same(got.tensors, sent)
    assert (got.blobs, got.header) == (blobs, message.header)
    assert encoded.size_bytes == len(encoded.head) + message.size_bytes


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=6), offset=st.integers(0, 300))
def test_a_transfer_goes_on_at_any_byte(sizes: list[int], offset: int) -> None:
    random = np.random.default_rng(6)
    sent = {str(i): np.frombuffer(random.bytes(size), "u1") for i, size in enumerate(sizes)}
    encoded = encode(Frame.TASK, Message({}, sent))
    assert payload_of(encoded, offset) == payload_of(encoded)[offset:]
    incoming = begin(encoded.head)
    incoming.allocate()
    fill(incoming, payload_of(encoded)[:offset])
    assert incoming.received == min(offset, encoded.payload_bytes)
    fill(incoming, payload_of(encoded, incoming.received))
    assert_same(incoming.message().tensors, sent)


def test_a_head_may_travel_as_a_frame_of_another_kind() -> None:
    encoded = encode(Frame.UPDATE, Message({"id": "1.1"}, {"t": np.arange(3)}))
    offered = encoded.headed(Frame.OFFER)
    assert kind_of(offered) is Frame.OFFER
    assert begin(offered).specs == begin(encoded.head).specs


def test_thousands_of_small_tensors_keep_their_order() -> None:
    sent = {f"layer.{i}": np.full(i % 5, i, np.int64) for i in range(3_000)}
    assert_same(travelled(Message({}, sent)).tensors, sent)


def test_one_encoding_serves_many_receivers() -> None:
    encoded = encode(Frame.TASK, Message({}, {"t": np.arange(9)}))
    assert payload_of(encoded) == payload_of(encoded)


def test_received_arrays_are_read_only() -> None:
    got = travelled(Message({}, {"t": np.zeros(3)})).tensors["t"]
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, "c16"),
        np.zeros(2, np.longdouble),
        np.zeros(2, [("a", "i4")]),
    ],
)
def test_a_dtype_that_does_not_travel_is_refused_by_name(array: Tensor) -> None:
    with pytest.raises(ProtocolError, match=r"'odd' has dtype .* does not travel.*float32"):
        encode(Frame.UPDATE, Message({}, {"odd": array}))
    with pytest.raises(ProtocolError, match="'odd'"):
        specs_of({"odd": array})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_not_put_into_a_header(value: float) -> None:
    with pytest.raises(ProtocolError, match="what JSON cannot carry"):
        control(Frame.HELLO, {"loss": value})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_a_number_that_is_not_finite_is_not_read_from_a_header(number: str) -> None:
    with pytest.raises(ProtocolError, match="not a finite number"):
        body_of(frame(Frame.UPDATE, b'{"header":{"loss":' + number.encode() + b"}}"))


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"3", b'"x"', b"\xff\xfe{}", b"{" * 9, b"[" * 60_000, b'{"a":' + b"9" * 5000],
)
def test_a_body_that_is_no_json_object_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        body_of(frame(Frame.HELLO, body))


def test_a_frame_of_an_unknown_kind_names_the_protocol_version() -> None:
    for unknown in (b"", b"?", b"\x00rest"):
        with pytest.raises(ProtocolError, match="protocol version 3"):
            kind_of(unknown)


@pytest.mark.parametrize("cut", [b"", b"H", b"H\0\0\0\0{}", b"H\0\0\0\3{}", b"H\xff\xff\xff\xff{}"])
def test_a_frame_that_is_not_as_long_as_it_says_has_no_body(cut: bytes) -> None:
    with pytest.raises(ProtocolError):
        body_of(cut)


def test_no_frame_is_longer_than_its_kind_may_be() -> None:
    longest = {Frame.DATA: DATA_BYTES, Frame.TASK: SMALL.head_bytes, Frame.HELLO: CONTROL_BYTES}
    for kind, length in longest.items():
        assert read_start(start(kind, length), SMALL) == (kind, length)
        with pytest.raises(
            ProtocolError, match=f"{kind.name} announces .* the limit is {length:,}"
        ):
            read_start(start(kind, length + 1), SMALL)


def test_a_head_that_claims_ten_terabytes_is_refused_before_anything_is_allocated() -> None:
    ten_terabytes = 10 * 10**12
    claims = [
        head_frame({"t": entry("U8", [ten_terabytes], 0, ten_terabytes)}),
        head_frame({"t": entry("F32", [1000] * 4 + [10], 0, 40 * 10**12)}),
        head_frame({}, {"b": ten_terabytes}),
        head_frame({"t": entry("U8", [1 << 61, 1 << 61], 0, 1 << 122)}),
    ]
    tracemalloc.start()
    for head in claims:
        with pytest.raises(ProtocolError, match=r"claims .* bytes; the limit is 17,179,869,184"):
            begin(head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_many_tensors_that_are_beyond_the_limit_together_are_refused() -> None:
    half = SMALL.message_bytes // 2
    begin(head_frame({"a": entry("U8", [half], 0, half)}, {"b": half}), SMALL)
    with pytest.raises(ProtocolError, match="PREFECT_FEDERATED_MAX_MESSAGE_BYTES"):
        begin(head_frame({"a": entry("U8", [half], 0, half)}, {"b": half + 1}), SMALL)


@pytest.mark.parametrize(
    "table",
    [
        {"t": entry("F32", [2], 0, 4)},
        {"t": entry("F32", [2], 4, 12)},
        {"t": entry("F32", [2], 8, 0)},
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)},
        {"t": {"dtype": "F32", "shape": [2]}},
        {"t": entry("F99", [2], 0, 8)},
        {"t": {"dtype": 4, "shape": [2], "data_offsets": [0, 8]}},
        {"t": entry("F32", [-1], 0, -4)},
        {"t": entry("F32", [True], 0, 4)},
        {"t": entry("F32", [1.0], 0, 4)},
        {"t": entry("F32", ["2"], 0, 8)},
        {"t": entry("F32", [1 << 62], 0, 1 << 64)},
        {"t": entry("U8", [1] * 17, 0, 1)},
        {"t": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
        {"t": 5},
        {"t": None},
        [],
        None,
    ],
)
def test_a_table_that_cannot_be_is_refused(table: object) -> None:
    with pytest.raises(ProtocolError):
        begin(head_frame(table))


def test_too_many_tensors_or_too_long_a_head_are_refused() -> None:
    table = {f"t{i}": entry("U8", [0], 0, 0) for i in range(SMALL.tensors + 1)}
    with pytest.raises(ProtocolError, match="51 tensors; the limit is 50"):
        begin(head_frame(table), SMALL)
    with pytest.raises(ProtocolError, match="the limit is 65,536"):
        begin(head_frame({}, header={"x": "y" * SMALL.head_bytes}), SMALL)


def test_a_shape_of_no_bytes_that_no_array_can_have_is_refused_when_room_is_made() -> None:
    incoming = begin(head_frame({"t": entry("U8", [0, 1 << 61, 1 << 61], 0, 0)}))
    with pytest.raises(ProtocolError, match="'t'"):
        incoming.allocate()


def test_a_truncated_payload_is_no_message() -> None:
    encoded = encode(Frame.UPDATE, Message({}, {"t": np.zeros(10)}))
    incoming = begin(encoded.head)
    incoming.allocate()
    fill(incoming, payload_of(encoded)[:49])
    assert not incoming.is_complete
    with pytest.raises(ProtocolError, match="31 bytes short of the 80"):
        incoming.message()


def test_bytes_beyond_the_announced_are_refused() -> None:
    encoded = encode(Frame.UPDATE, Message({}, {"t": np.zeros(10)}))
    incoming = begin(encoded.head)
    incoming.allocate()
    fill(incoming, payload_of(encoded))
    incoming.place(0)
    with pytest.raises(ProtocolError, match=r"3 bytes more than the head announced \(80\)"):
        incoming.place(3)


def test_a_discarded_message_is_read_and_not_kept() -> None:
    encoded = encode(Frame.UPDATE, Message({}, {"t": np.zeros(1 << 20)}))
    incoming = begin(encoded.head)
    incoming.discard()
    fill(incoming, payload_of(encoded))
    assert incoming.is_complete
    with pytest.raises(ProtocolError, match="more than the head announced"):
        incoming.place(1)
    with pytest.raises(ProtocolError, match="discarded"):
        incoming.message()


def test_a_message_may_be_discarded_while_it_arrives() -> None:
    encoded = encode(Frame.UPDATE, Message({}, {"t": np.zeros(1000)}))
    incoming = begin(encoded.head)
    incoming.allocate()
    place = incoming.place(100)
    incoming.discard()
    incoming.advance(place.nbytes)
    fill(incoming, payload_of(encoded, 100))
    assert incoming.is_complete
    assert incoming.is_discarded


@settings(max_examples=400, deadline=None)
@given(body=bodies, parts=chunks)
def test_any_bytes_whatever_give_a_message_or_a_protocol_error(
    body: bytes, parts: list[bytes]
) -> None:
    check_decoder(body, parts)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=100), is_framed=st.booleans())
def test_any_control_frame_gives_a_body_or_a_protocol_error(
    content: bytes, is_framed: bool
) -> None:
    try:
        body: dict[str, JsonValue] = body_of(
            frame(Frame.HELLO, content) if is_framed else content, SMALL
        )
    except ProtocolError:
        return
    json.dumps(body, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 999), max_size=6),
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=6),
)
def test_however_the_payload_is_cut_it_arrives(cuts: list[int], shapes: list[list[int]]) -> None:
    random = np.random.default_rng(3)
    sent = {str(i): random.normal(size=shape) for i, shape in enumerate(shapes)}
    encoded = encode(Frame.UPDATE, Message({}, sent))
    payload = b"".join(encoded.payload)
    incoming: Incoming = begin(encoded.head)
    incoming.allocate()
    places = sorted({0, len(payload), *(cut for cut in cuts if cut < len(payload))})
    for begins, ends in pairwise(places):
        fill(incoming, payload[begins:ends])
    assert_same(incoming.message().tensors, sent)
