"""How many notes a site may send: what it keeps to by itself, and what ends its connection.

A site counts with the same numbers before it sends (`notepad`). The server allows twice as many,
and for a line that has stood still, so that nobody but a site that is not ours meets its bounds.
"""

import time
from collections.abc import Callable, Mapping

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import JsonValue
from prefect_federated.transport.notes import NAMES, notes_of
from prefect_federated.transport.signals import SiteNotes

POINTS_AT_ONCE = 10_000
"""Numbers that a site sends at once at most,"""
POINTS_A_SECOND = 4_000.0
"""and so many more each second."""

_BUNCHED_S = 12.0  # what a site sent while its line stood still may come at once
_FRAME_POINTS = 10  # what a frame costs beside its numbers


class Allowance:
    """How much of something is allowed: so much at once, and so much more each second.

    Args:
        most: How much at once.
        a_second: How much more each second.
        clock: Monotonic seconds.
    """

    def __init__(
        self, most: float, a_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._left = most
        self._a_second = a_second
        self._clock = clock
        self._counted_at = clock()

    def left(self) -> float:
        """Returns how much is allowed now."""
        now = self._clock()
        earned = (now - self._counted_at) * self._a_second
        self._left, self._counted_at = min(self._left + earned, self._most), now
        return self._left

    def spend(self, count: float) -> bool:
        """Takes so much of it; False, and nothing is taken, if that is more than is left."""
        if count > self.left():
            return False
        self._left -= count
        return True


class NoteGate:
    """Reads the notes of one connection, and says where a site sends more than any of ours does.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        at_once = 2 * (POINTS_AT_ONCE + _BUNCHED_S * POINTS_A_SECOND)
        self._points = Allowance(at_once, 2 * POINTS_A_SECOND, clock)
        self._names: set[str] = set()

    def read(self, body: Mapping[str, JsonValue]) -> SiteNotes:
        """Returns the notes that a frame's body carries.

        Raises:
            ProtocolError: they are not what they must be, too many, or of too many metrics.
        """
        notes = notes_of(body)
        if not self._points.spend(notes.points + _FRAME_POINTS):
            raise ProtocolError(
                f"a flood of notes came; a site sends {POINTS_A_SECOND:,.0f} numbers a second at "
                "most."
            )
        for note in notes.notes:
            self._names.update(note.metrics)
        if len(self._names) > NAMES:
            raise ProtocolError(
                f"notes of more than {NAMES:,} different metrics came; a site has no more."
            )
        return notes
