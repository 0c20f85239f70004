"""Notes as JSON: what travels exactly, and what is refused at the server."""

import json
import math
from typing import Any

import pytest
from hypothesis import given

from prefect_federated.errors import ProtocolError
from prefect_federated.frames import NOTES_BYTES, START_BYTES, Frame, body_of, control, start
from prefect_federated.messages import JsonValue, Note
from prefect_federated.transport.note_gate import (
    POINTS_A_SECOND,
    POINTS_AT_ONCE,
    Allowance,
    NoteGate,
)
from prefect_federated.transport.notes import (
    NAME_LENGTH,
    NAMES,
    POINTS_A_FRAME,
    POINTS_A_NOTE,
    as_body,
    divided,
    framed,
    notes_of,
)
from prefect_federated.transport.signals import SiteNotes
from tests.fuzzing import bodies_of_notes, check_notes
from tests.transport.trial import Clock


def body(*notes: Any, **more: JsonValue) -> dict[str, JsonValue]:
    return {"id": "1.1", "notes": [*notes], **more}


def test_notes_arrive_as_they_were_sent_whatever_their_numbers() -> None:
    odd = {"loss": math.nan, "up": math.inf, "down": -math.inf, "best": 0.1, "größe": 1e-300}
    sent = SiteNotes("1.1", (Note(5.25, odd, 3), Note(6.5, progress=(1.0, 4.0, "epoch"))), 7)
    frame = control(Frame.NOTES, as_body(sent))
    got = notes_of(body_of(frame))
    assert repr(got) == repr(sent)  # NaN is not itself
    assert b"NaN" not in frame


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        ({}, "must have `id` and `notes`"),
        ({"id": 1, "notes": []}, "must have `id` and `notes`"),
        ({"id": "1.1", "notes": {}}, "must have `id` and `notes`"),
        (body(dropped=-1), "must have `id` and `notes`"),
        (body(dropped=0.5), "must have `id` and `notes`"),
        (body("hello"), "a note is 'hello'"),
        (body({"metrics": {"a": 1}}), "it must have `time`"),
        (body({"time": True, "metrics": {"a": 1}}), "it must have `time`"),
        (body({"time": 1e300, "metrics": {"a": 1}}), "it must have `time`"),
        (body({"time": -1, "metrics": {"a": 1}}), "it must have `time`"),
        (body({"time": 1, "metrics": {"a": 1}, "rows": [1, 2]}), "what it says then"),
        (body({"time": 1}), "must have 1 to 100 metrics"),
        (body({"time": 1, "metrics": {}}), "must have 1 to 100 metrics"),
        (body({"time": 1, "metrics": {str(i): i for i in range(101)}}), "1 to 100 metrics"),
        (body({"time": 1, "metrics": [1]}), "must have 1 to 100 metrics"),
        (body({"time": 1, "metrics": {"a": "high"}}), "the metric 'a' as 'high'"),
        (body({"time": 1, "metrics": {"a": "NaN"}}), "the metric 'a' as 'NaN'"),
        (body({"time": 1, "metrics": {"a": None}}), "the metric 'a' as None"),
        (body({"time": 1, "metrics": {"a": True}}), "the metric 'a' as True"),
        (body({"time": 1, "metrics": {"a": [1.0, 2.0]}}), "the metric 'a' as"),
        (body({"time": 1, "metrics": {"a": 10**400}}), "the metric 'a' as"),
        (body({"time": 1, "metrics": {"": 1}}), "printable name"),
        (body({"time": 1, "metrics": {"a\nb": 1}}), "printable name"),
        (body({"time": 1, "metrics": {"a" * (NAME_LENGTH + 1): 1}}), "printable name"),
        (body({"time": 1, "metrics": {"a": 1}, "step": 1.5}), "step is 1.5"),
        (body({"time": 1, "metrics": {"a": 1}, "step": 10**30}), "step is 1000"),
        (body({"time": 1, "metrics": {"a": 1}, "progress": [1, 2, "x"]}), "not of both"),
        (body({"time": 1, "progress": [1, 2]}), "progress is"),
        (body({"time": 1, "progress": [1, 0, "epoch"]}), "progress is"),
        (body({"time": 1, "progress": [-1, 3, "epoch"]}), "progress is"),
        (body({"time": 1, "progress": [1, 3, "a\nb"]}), "progress is"),
        (body({"time": 1, "progress": [1, 3, "e" * 51]}), "progress is"),
        (body({"time": 1, "progress": ["1", 3, "epoch"]}), "progress is"),
        (body(*[{"time": 1, "progress": [1, 2, "x"]}] * 1001), "a frame of 1,001 notes"),
        (
            body(*[{"time": 1, "metrics": {str(i): 1 for i in range(100)}}] * 11),
            "notes with 1,100 numbers",
        ),
    ],
)
def test_what_no_site_of_ours_says_is_refused(hostile: dict[str, Any], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        notes_of(json.loads(json.dumps(hostile)))


def test_a_refusal_does_not_repeat_what_it_refuses_at_length() -> None:
    with pytest.raises(ProtocolError) as refused:
        notes_of(body({"time": 1, "metrics": {"a": "x" * 100_000}}))
    assert len(str(refused.value)) < 400


@given(bodies_of_notes)
def test_any_body_whatever_gives_notes_or_a_protocol_error(found: dict[str, Any]) -> None:
    check_notes(found)


def test_a_frame_of_notes_is_small() -> None:
    too_long = start(Frame.NOTES, NOTES_BYTES + 1)
    with pytest.raises(ProtocolError, match="kind NOTES announces 262,145 bytes"):
        body_of(too_long + bytes(NOTES_BYTES + 1))


def test_whatever_a_site_says_is_divided_into_frames_that_the_server_takes() -> None:
    long_name = "\U0001f4a9" * (NAME_LENGTH - 3)  # each is 12 bytes of JSON
    large = Note(1e10, {f"{long_name}{i:03}": -1.2345678901234567e-300 for i in range(250)}, 2**53)
    notes = [part for note in [large, large] for part in divided(note)]
    notes += [Note(float(i), {"loss": 0.5}, i) for i in range(3_000)]
    sent = list(framed("1.1", notes, dropped=5))
    got = []
    for portion in sent:
        frame = control(Frame.NOTES, as_body(portion))
        assert len(frame) <= NOTES_BYTES + START_BYTES
        got.append(notes_of(body_of(frame)))
    assert [note for portion in got for note in portion.notes] == notes
    assert max(portion.points for portion in got) <= POINTS_A_FRAME
    assert max(note.points for note in notes) <= POINTS_A_NOTE
    assert [portion.dropped for portion in got] == [5] + [0] * (len(got) - 1)


# How many


def test_an_allowance_comes_back_with_the_time() -> None:
    clock = Clock()
    allowance = Allowance(10, 2, clock)
    assert allowance.spend(8)
    assert not allowance.spend(3)
    assert allowance.left() == 2
    clock.now += 1.5
    assert allowance.left() == 5
    clock.now += 100
    assert allowance.left() == 10


def full(portion: int) -> dict[str, JsonValue]:
    note: JsonValue = {"time": 1, "metrics": {f"m{i}": portion for i in range(100)}}
    return body(*[note] * 10)


def test_what_a_site_may_send_at_most_passes_the_gate_even_if_its_line_stood_still() -> None:
    clock = Clock()
    gate = NoteGate(clock)
    stood_still_s = 12
    for portion in range(int(POINTS_AT_ONCE + stood_still_s * POINTS_A_SECOND) // POINTS_A_FRAME):
        gate.read(full(portion))
    for portion in range(50):
        clock.now += POINTS_A_FRAME / POINTS_A_SECOND
        gate.read(full(portion))


@pytest.mark.parametrize("frame", [full(1), body(), body({"time": 1, "metrics": {"a": 1}})])
def test_a_flood_does_not_pass_the_gate(frame: dict[str, JsonValue]) -> None:
    gate = NoteGate(Clock())

    def flood() -> None:
        for _ in range(20_000):
            gate.read(frame)

    with pytest.raises(ProtocolError, match="a flood of notes came"):
        flood()


def test_ever_new_names_do_not_pass_the_gate() -> None:
    gate = NoteGate(Clock())
    for number in range(NAMES):
        gate.read(body({"time": 1, "metrics": {f"m{number}": 1}}))
    gate.read(body({"time": 1, "metrics": {"m5": 1}}))
    with pytest.raises(ProtocolError, match="more than 1,000 different metrics"):
        gate.read(body({"time": 1, "metrics": {"one more": 1}}))
