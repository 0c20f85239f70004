"""What goes out on a connection, and in which order."""

import numpy as np

from prefect_federated.frames import START_BYTES, Frame, control, kind_of, read_start
from prefect_federated.messages import Message
from prefect_federated.transport.outbox import Outbox, Transfer
from prefect_federated.wire import CHUNK_BYTES, Encoded, encode


def model(size: int) -> Encoded:
    random = np.random.default_rng(2)
    return encode(Frame.TASK, Message({"id": "1"}, {"w": np.frombuffer(random.bytes(size), "u1")}))


def sent(outbox: Outbox, at_most: int | None = None) -> list[bytes]:
    """Takes frames out, piece by piece, as a connection does."""
    stream = bytearray()
    found: list[bytes] = []
    while (at_most is None or len(found) < at_most) and (piece := outbox.piece()) is not None:
        assert outbox.piece() is piece
        taken = piece[:20_000]
        stream += taken
        outbox.advance(taken.nbytes)
        while len(stream) >= START_BYTES:
            length = START_BYTES + read_start(stream[:START_BYTES])[1]
            if len(stream) < length:
                break
            found.append(bytes(stream[:length]))
            del stream[:length]
    return found


def test_a_transfer_is_its_opening_and_full_data_frames() -> None:
    encoded, outbox = model(2 * CHUNK_BYTES + 7), Outbox()
    outbox.transfer(Transfer(encoded.head, encoded))
    head, *data = sent(outbox)
    assert head == encoded.head
    assert [len(frame) - START_BYTES for frame in data] == [CHUNK_BYTES, CHUNK_BYTES, 7]
    assert b"".join(frame[START_BYTES:] for frame in data) == b"".join(encoded.payload)


def test_control_frames_overtake_a_transfer_between_its_data_frames() -> None:
    encoded, outbox = model(3 * CHUNK_BYTES), Outbox()
    outbox.transfer(Transfer(encoded.head, encoded))
    before = sent(outbox, 2)
    outbox.post(control(Frame.ACK, {"id": "9"}))
    kinds = [kind_of(frame) for frame in before + sent(outbox)]
    assert kinds == [Frame.TASK, Frame.DATA, Frame.ACK, Frame.DATA, Frame.DATA]


def test_transfers_go_one_after_the_other_from_their_offsets() -> None:
    encoded, outbox = model(100), Outbox()
    outbox.transfer(Transfer(encoded.head, encoded))
    outbox.transfer(Transfer(control(Frame.PAYLOAD, {"id": "1", "offset": 60}), encoded, 60))
    frames = sent(outbox)
    assert [kind_of(one) for one in frames] == [Frame.TASK, Frame.DATA, Frame.PAYLOAD, Frame.DATA]
    assert frames[3][START_BYTES:] == frames[1][START_BYTES + 60 :]


def test_a_transfer_that_is_not_wanted_any_more_stops_at_the_next_data_frame() -> None:
    encoded, outbox, wanted = model(3 * CHUNK_BYTES), Outbox(), [True]
    outbox.transfer(Transfer(encoded.head, encoded, is_wanted=lambda: wanted[0]))
    outbox.transfer(Transfer(encoded.head, encoded, is_wanted=lambda: False))
    assert len(sent(outbox, 2)) == 2
    wanted[0] = False
    assert sent(outbox) == []
    assert outbox.piece() is None


def test_the_last_frame_goes_after_the_control_frames_and_instead_of_the_transfers() -> None:
    encoded, outbox = model(3 * CHUNK_BYTES), Outbox()
    outbox.transfer(Transfer(encoded.head, encoded))
    sent(outbox, 2)
    outbox.finish(control(Frame.END, {"outcome": "completed"}))
    outbox.finish(control(Frame.END, {"outcome": "another"}))
    outbox.post(control(Frame.ACK, {"id": "9"}))
    assert not outbox.is_finished
    kinds = [kind_of(frame) for frame in sent(outbox)]
    assert kinds == [Frame.ACK, Frame.END]
    assert outbox.is_finished
    outbox.post(control(Frame.HEARTBEAT))
    assert outbox.piece() is None


def test_thousands_of_small_tensors_fill_whole_records() -> None:
    tensors = {str(i): np.full(100, i % 256, np.uint8) for i in range(2_000)}
    encoded, outbox = encode(Frame.TASK, Message({}, tensors)), Outbox()
    outbox.transfer(Transfer(encoded.head, encoded))
    pieces = []
    while (piece := outbox.piece()) is not None:
        pieces.append(piece.nbytes)
        outbox.advance(piece.nbytes)
    assert sum(pieces) == encoded.size_bytes + START_BYTES
    assert len(pieces) <= 200_000 / 16_384 + len(encoded.head) / 16_384 + 3
