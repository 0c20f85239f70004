"""Notes as they travel: JSON at the site, and checked notes again at the server.

Named numbers and nothing else. Each limit is one that a site keeps by itself (`notepad`), so what
is beyond it comes from no site of ours.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import JsonValue, Note
from prefect_federated.transport.signals import SiteNotes

NAME_LENGTH = 200
"""Characters of a metric's name at most."""
UNIT_LENGTH = 50
"""Characters of the unit of progress at most."""
NAMES = 1_000
"""Different names of metrics that a site may use in a job."""
POINTS_A_NOTE = 100
"""Numbers of one note at most; a site divides what has more."""
POINTS_A_FRAME = 1_000
"""Numbers in the notes of one frame at most."""
LARGEST_STEP = 1 << 53
"""A step is at most so far from 0."""

_FRAME_BYTES = 240 << 10  # less than `frames.NOTES_BYTES`: ids and brackets come to it
_POINT_BYTES = 40  # of a number in JSON, and of a note around it, at most
_LAST_TIME = 1e11  # seconds since 1970
_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_KNOWN = frozenset({"time", "metrics", "step", "progress"})


def as_body(notes: SiteNotes) -> dict[str, JsonValue]:
    """Returns notes as a JSON object; numbers that are not finite are strings."""
    body: dict[str, JsonValue] = {"id": notes.id, "notes": [_entry(note) for note in notes.notes]}
    return body | {"dropped": notes.dropped} if notes.dropped else body


def _entry(note: Note) -> JsonValue:
    if note.progress is not None:
        return {"time": note.time, "progress": [*note.progress]}
    entry: dict[str, JsonValue] = {"time": note.time, "metrics": jsonable(note.metrics)}
    return entry if note.step is None else entry | {"step": note.step}


def jsonable(metrics: Mapping[str, float]) -> dict[str, JsonValue]:
    """Returns metrics as JSON can carry them.

    >>> jsonable({"loss": 0.5, "gradient": float("inf")})
    {'loss': 0.5, 'gradient': 'inf'}
    """
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def notes_of(body: Mapping[str, JsonValue]) -> SiteNotes:
    """Returns the notes that a JSON object carries.

    Raises:
        ProtocolError: it is not what `as_body` makes, or is beyond a limit.
    """
    task, entries, dropped = body.get("id"), body.get("notes"), body.get("dropped", 0)
    if not (isinstance(task, str) and isinstance(entries, list) and _is_whole(dropped)):
        raise ProtocolError("a frame of notes must have `id` and `notes`.")
    if len(entries) > POINTS_A_FRAME:
        raise ProtocolError(
            f"a frame of {len(entries):,} notes came; the limit is {POINTS_A_FRAME:,}."
        )
    notes = SiteNotes(task, tuple(map(_note, entries)), dropped)
    if notes.points > POINTS_A_FRAME:
        raise ProtocolError(
            f"a frame of notes with {notes.points:,} numbers came; the limit is {POINTS_A_FRAME:,}."
        )
    return notes


def _note(entry: JsonValue) -> Note:
    read = entry if isinstance(entry, dict) else {}
    time = read.get("time")
    if not (_is_number(time) and 0 <= time < _LAST_TIME and read.keys() <= _KNOWN):
        raise ProtocolError(f"a note is {entry!r:.80}; it must have `time`, and what it says then.")
    metrics, progress, step = read.get("metrics"), read.get("progress"), read.get("step")
    if progress is not None:
        if metrics is not None or step is not None:
            raise ProtocolError("a note is of metrics or of progress, not of both.")
        return Note(float(time), progress=_progress(progress))
    if not (isinstance(metrics, dict) and 0 < len(metrics) <= POINTS_A_NOTE):
        raise ProtocolError(f"a note must have 1 to {POINTS_A_NOTE} metrics.")
    if not (step is None or _is_whole(step, least=-LARGEST_STEP)):
        raise ProtocolError(f"a note's step is {step!r:.80}; it must be a whole number.")
    numbers = {name: _value(name, value) for name, value in metrics.items()}
    return Note(float(time), numbers, step)


def _value(name: str, value: JsonValue) -> float:
    if is_name(name):
        if _is_number(value):
            return float(value)
        if isinstance(value, str) and value in _ODD:
            return _ODD[value]
    raise ProtocolError(
        f"a note has the metric {name!r:.80} as {value!r:.80}; a metric is a number with a "
        f"printable name of at most {NAME_LENGTH} characters."
    )


def _progress(value: JsonValue) -> tuple[float, float, str]:
    if isinstance(value, list) and len(value) == 3:
        done, total, unit = value
        is_unit = isinstance(unit, str) and len(unit) <= UNIT_LENGTH and unit.isprintable()
        if is_unit and _is_number(done) and done >= 0 and _is_number(total) and total > 0:
            return float(done), float(total), str(unit)
    raise ProtocolError(f"a note's progress is {value!r:.80}; it must be done, total and unit.")


def is_name(name: str) -> bool:
    """Whether a metric may be called so: in one line that can be printed, and not too long."""
    return 0 < len(name) <= NAME_LENGTH and name.isprintable()


def divided(note: Note) -> Iterator[Note]:
    """Yields a note in parts, each with no more numbers than one note may have."""
    names = list(note.metrics)
    for start in range(0, len(names), POINTS_A_NOTE):
        part = {name: note.metrics[name] for name in names[start : start + POINTS_A_NOTE]}
        yield Note(note.time, part, note.step, None, note.kind, note.round)


def framed(task: str, notes: Iterable[Note], dropped: int = 0) -> Iterator[SiteNotes]:
    """Yields notes in portions, each of which one frame can carry."""
    portion: list[Note] = []
    points = size = 0
    for note in notes:
        size_bytes = _most_bytes(note)
        if portion and (points + note.points > POINTS_A_FRAME or size + size_bytes > _FRAME_BYTES):
            yield SiteNotes(task, tuple(portion), dropped)
            portion, points, size, dropped = [], 0, 0, 0
        portion.append(note)
        points, size = points + note.points, size + size_bytes
    if portion:
        yield SiteNotes(task, tuple(portion), dropped)


def _most_bytes(note: Note) -> int:
    """Returns what a note takes as JSON at most: a character that is not ASCII is escaped."""
    unit = 0 if note.progress is None else 3 * len(note.progress[2].encode())
    names = sum(3 * len(name.encode()) + _POINT_BYTES for name in note.metrics)
    return 4 * _POINT_BYTES + unit + names


def _is_number(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return least <= value <= LARGEST_STEP
