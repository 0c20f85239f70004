"""Which updates may be on their way to the controller: its memory is bounded, the rest waits.

Pure bookkeeping. An update takes room from when its site is told to send it until the controller
has done with it.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from prefect_federated.messages import Update
from prefect_federated.transport.calls import CallRecord, CallTerms
from prefect_federated.wire import Incoming

TOGETHER_BYTES = 1 << 30
"""Bytes of all updates in memory at once; one that is larger by itself comes alone."""


class Stage(Enum):
    """How far a site task has come at one site."""

    QUEUED = auto()  # the site is at another task, or not there
    SENT = auto()
    OFFERED = auto()  # the site has the update, and waits for room
    RECEIVING = auto()
    BROKEN = auto()  # the connection broke while the update was received
    ARRIVED = auto()


@dataclass(eq=False, slots=True)
class Asked:
    """One site task at one site, until the controller has done with its update.

    Args:
        site: The site.
        task: The task's id.
        call: The call that takes the answer; None when it has closed and a later one may take it.
        kind: The site task.
        terms: What the call in which it was asked waits for.
        since: When it was asked.
    """

    site: str
    task: str
    call: CallRecord | None
    kind: str
    terms: CallTerms
    since: float
    stage: Stage = Stage.QUEUED
    incoming: Incoming | None = None
    reply: Update | None = None  # that came late, and no call has taken yet
    progress: tuple[int, float] = (0, 0.0)  # bytes received, and since when no more came

    @property
    def size_bytes(self) -> int:
        """Bytes of the update's payload; 0 before it is offered."""
        return 0 if self.incoming is None else self.incoming.payload_bytes


@dataclass
class Room:
    """The updates in memory: at most `most`, together at most `TOGETHER_BYTES`; see `has_room`."""

    most: int
    held: dict[Asked, None] = field(default_factory=dict)
    awaited: Counter[CallRecord] = field(default_factory=Counter)  # by how many threads

    def has_room(self, asked: Asked) -> bool:
        """Whether this update may come now.

        Updates of calls that the controller does not read at present cannot block those of a call
        for which it waits: it would wait for ever. So there may be twice `most`, never more.
        """
        holders = [
            other
            for other in self.held
            if asked.call not in self.awaited or other.call in self.awaited
        ]
        together = sum(other.size_bytes for other in holders) + asked.size_bytes
        fits = len(holders) < self.most and together <= TOGETHER_BYTES
        return (fits or not holders) and len(self.held) < 2 * self.most

    def take(self, asked: Asked) -> None:
        """Notes that an update takes room from now on."""
        self.held[asked] = None

    def free(self, asked: Asked) -> None:
        """Notes that an update takes no room any more."""
        self.held.pop(asked, None)

    def weakest(self) -> Asked | None:
        """Returns an update that gives way to others, if there is one.

        That is one whose site is gone, or else one that is late already.
        """
        broken = (asked for asked in self.held if asked.stage is Stage.BROKEN)
        late = (a for a in self.held if a.call is None and a.stage is Stage.RECEIVING)
        return next(broken, None) or next(late, None)
