"""Where a site's notes wait until they are sent: bounded, and sent a few times a second at most.

Whoever trains only puts a note on a pad; one thread, started with the first note, sends what the
pads hold. Where nobody takes notes, there is neither thread nor work.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from prefect_federated.messages import Note
from prefect_federated.transport.note_gate import POINTS_A_SECOND, Allowance
from prefect_federated.transport.notes import (
    LARGEST_STEP,
    NAME_LENGTH,
    NAMES,
    POINTS_A_NOTE,
    UNIT_LENGTH,
    divided,
    framed,
    is_name,
)
from prefect_federated.transport.signals import SiteNotes
from prefect_federated.transport.updates import printable

EVERY_S = 0.25
"""Seconds between two times that notes are sent, but for the last of a task."""
POINTS_KEPT = 10_000
"""Numbers that wait at most; then the oldest are dropped."""
_POINTS_A_TURN = round(EVERY_S * POINTS_A_SECOND)

Deliver: TypeAlias = Callable[[SiteNotes], bool]
"""Sends notes; False if they cannot be sent now."""

log = logging.getLogger("prefect_federated.site")


class Notepad:
    """The notes of one site task until they are sent; a `Stream` for the executor.

    Args:
        task: The task's id.
        courier: Who sends them; None: they wait until the pad is closed.
        deliver: How.
        allowance: Of numbers that may be sent; None for any.
        names: The names that the site's metrics have had so far; new ones are added.
    """

    def __init__(
        self,
        task: str,
        courier: "Courier | None" = None,
        deliver: Deliver = lambda notes: False,
        allowance: Allowance | None = None,
        names: set[str] | None = None,
    ) -> None:
        self._task = task
        self._courier = courier
        self._deliver = deliver
        self._allowance = allowance
        self._names = set() if names is None else names
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # so that the last notes go after those before
        self._notes: deque[Note] = deque()  # of metrics
        self._progress: Note | None = None  # the newest; no other is worth sending
        self._points = 0
        self._dropped = 0
        self._is_closed = False
        self._has_warned = False

    def tell(self, note: Note) -> None:
        """Takes a note. Waits for nothing; what cannot travel is left out."""
        with self._lock:
            if self._is_closed:
                return
            if note.progress is not None:
                done, total, unit = note.progress
                self._progress = replace(note, progress=(done, total, printable(unit, UNIT_LENGTH)))
            else:
                self._write(note)
        if self._courier is not None:
            self._courier.call(self)

    def send(self) -> bool:
        """Sends some of what waits; whether there is more to send."""
        with self._sending:
            with self._lock:
                portions = self._take()
            for number, portion in enumerate(portions):
                if not self._deliver(portion):
                    with self._lock:
                        self._put_back(portions[number:])
                    break
            with self._lock:
                return bool(self._notes) or self._progress is not None

    def close(self) -> list[SiteNotes]:
        """Takes no more notes; returns those that wait, once all before them have been sent."""
        with self._sending, self._lock:
            self._is_closed = True
            self._trim(POINTS_KEPT if self._allowance is None else self._allowance.left())
            return self._take(most=POINTS_KEPT)

    # Inside, with the lock

    def _write(self, note: Note) -> None:
        if note.step is not None and abs(note.step) > LARGEST_STEP:
            self._warn(f"metrics of step {note.step} are left out: it is beyond {LARGEST_STEP:,}")
            return
        if not note.metrics.keys() <= self._names:
            fit = {name: value for name, value in note.metrics.items() if self._may_use(name)}
            note = replace(note, metrics=fit)
        parts = (note,) if 0 < len(note.metrics) <= POINTS_A_NOTE else divided(note)
        for part in parts:
            self._notes.append(part)
            self._points += len(part.metrics)
        self._trim(POINTS_KEPT)

    def _may_use(self, name: str) -> bool:
        if name in self._names:
            return True
        if len(self._names) < NAMES and is_name(name):
            self._names.add(name)
            return True
        self._warn(
            f"the metric {name!r:.80} is left out: a site has {NAMES:,} different names of metrics "
            f"at most, each printable and of at most {NAME_LENGTH} characters"
        )
        return False

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("task %s: %s", self._task, what)

    def _trim(self, most: float) -> None:
        while self._points > most:
            oldest = self._notes.popleft()
            self._points -= oldest.points
            self._dropped += oldest.points

    def _take(self, most: int = _POINTS_A_TURN) -> list[SiteNotes]:
        """Takes what may be sent now, the oldest first, in portions of a frame each."""
        taken: list[Note] = []
        points = 0
        left = most if self._allowance is None else min(most, self._allowance.left())
        while self._notes and points + self._notes[0].points <= left:
            taken.append(self._notes.popleft())
            points += taken[-1].points
        self._points -= points
        if self._allowance is not None:
            self._allowance.spend(points)
        if self._progress is not None:
            taken.append(self._progress)
            self._progress = None
        dropped = self._dropped if taken else 0
        self._dropped -= dropped
        return list(framed(self._task, taken, dropped))

    def _put_back(self, portions: Sequence[SiteNotes]) -> None:
        notes = [note for portion in portions for note in portion.notes]
        points = 0
        for note in reversed(notes):
            if note.progress is None:
                self._notes.appendleft(note)
                points += note.points
            else:
                self._progress = self._progress or note
        self._points += points
        self._dropped += sum(portion.dropped for portion in portions)
        if self._allowance is not None:
            self._allowance.spend(-points)
        self._trim(POINTS_KEPT)


class Courier:
    """Sends what pads hold, a few times a second, on a thread that starts with the first note.

    Args:
        every_s: Seconds between two times.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._changed = threading.Condition()
        self._waiting: dict[Notepad, None] = {}
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def call(self, pad: Notepad) -> None:
        """Notes that a pad has something to send; returns at once."""
        if pad in self._waiting:  # it is gone from there before the pad is looked at
            return
        with self._changed:
            self._waiting[pad] = None
            if self._thread is None and not self._is_closed.is_set():
                self._thread = threading.Thread(target=self._run, name="notes", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Sends nothing any more."""
        self._is_closed.set()
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed.is_set())
                if self._is_closed.is_set():
                    return
                pads, self._waiting = list(self._waiting), {}
            for pad in pads:
                self._send(pad)
            self._is_closed.wait(self._every_s)

    def _send(self, pad: Notepad) -> None:
        try:
            has_more = pad.send()
        except Exception:  # a note is worth no round: what cannot be sent is lost
            log.exception("notes could not be sent")
            return
        if has_more:
            self.call(pad)
