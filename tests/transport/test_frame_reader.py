"""Frames out of bytes, however these are cut, and no room for what is only announced."""

import tracemalloc

import pytest
from hypothesis import given, settings

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import DATA_BYTES, Frame, control, start
from prefect_federated.messages import Message
from prefect_federated.transport.frame_reader import FrameReader
from prefect_federated.wire import encode
from tests.fuzzing import Recorder, check_frame_reader, cuts, frame, read_in_parts, streams


@settings(max_examples=300, deadline=None)
@given(stream=streams, places=cuts)
def test_however_a_stream_is_cut_the_same_frames_come_out(stream: bytes, places: list[int]) -> None:
    check_frame_reader(stream, places)


def test_a_head_is_given_no_more_room_than_has_come_of_it() -> None:
    reader = FrameReader(Recorder())
    tracemalloc.start()
    first = start(Frame.TASK, 16 << 20) + bytes(10_000)
    left = memoryview(first)
    while left:
        place = reader.place()[: left.nbytes]
        place[:] = left[: place.nbytes]
        reader.advance(place.nbytes)
        left = left[place.nbytes :]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_bytes_go_straight_into_the_tensors_memory() -> None:
    encoded = encode(Frame.UPDATE, Message({"id": "1"}, {}, {"b": bytes(range(200))}))
    reader = FrameReader(Recorder())
    for part in (encoded.head, start(Frame.DATA, 200)):
        for byte in part:
            reader.place()[0] = byte
            reader.advance(1)
    assert reader.place().nbytes == 200


def test_a_transfer_that_its_sender_gave_up_is_followed_by_another() -> None:
    encoded = encode(Frame.UPDATE, Message({"id": "1"}, {}, {"b": b"abc"}))
    stream = encoded.head + frame(Frame.DATA, b"a") + encoded.head + frame(Frame.DATA, b"abc")
    kinds = [kind for kind, _ in read_in_parts(stream, ())]
    assert kinds == ["begin", "begin", "message"]


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (start(Frame.DATA, 1), "where no message's payload was to follow"),
        (start(Frame.DATA, DATA_BYTES + 1), "a frame of kind DATA announces 262,140 bytes"),
        (b"GET / HTTP/1.1\r\n", "frame of unknown kind b'?'|announces"),
        (control(Frame.UPDATE, {"header": {}}), "lacks `header`, `tensors` or `blobs`"),
    ],
)
def test_what_is_no_frame_is_a_protocol_error(stream: bytes, says: str) -> None:
    ((kind, reason),) = read_in_parts(stream, ())[-1:]
    assert kind == "error"
    assert any(part in str(reason) for part in says.split("|"))


def test_the_error_ends_the_reading() -> None:
    reader = FrameReader(Recorder())
    place = reader.place()
    place[:] = b"?1234"
    with pytest.raises(ProtocolError, match="unknown kind"):
        reader.advance(5)
