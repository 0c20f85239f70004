"""Simulated time, chance, and the store of snapshots."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

CALM_AFTER_S = 400.0  # from then on nothing breaks any more, and the job must come to its end


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass
class World:
    """Simulated time, chance, and what must hold."""

    seed: int
    keep: int = 60
    now: float = 0.0

    def __post_init__(self) -> None:
        self.trace: deque[str] = deque(maxlen=self.keep)
        self.chance = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        """Returns the simulated time in seconds."""
        return self.now

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Lets something happen after so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def step(self) -> bool:
        """Lets the next thing happen; False if there is none."""
        if not self._events:
            return False
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        event()
        return True

    @property
    def is_calm(self) -> bool:
        """Whether nothing breaks any more."""
        return self.now > CALM_AFTER_S

    def happens(self, probability: float) -> bool:
        """Whether a mishap of this probability happens now."""
        return not self.is_calm and self.chance.random() < probability

    def say(self, what: str) -> None:
        """Notes what happened, for the report of a failure."""
        self.trace.append(f"{self.now:9.3f} {what}")

    def require(self, holds: bool, what: str) -> None:
        """Raises `Violation` unless something holds."""
        if not holds:
            raise Violation(what)


@dataclass
class Store:
    """Where snapshots are: the newest attempt that has claimed it, and the last round."""

    world: World
    epoch: int = 0
    round: int = 0
    committed: list[tuple[int, int]] = field(default_factory=list)

    def claim(self, epoch: int) -> int:
        """Takes the store for an attempt, and returns the round from which it goes on."""
        self.epoch = max(self.epoch, epoch)
        return self.round

    def commit(self, epoch: int, number: int) -> bool:
        """Writes a snapshot; False if a newer attempt has claimed the store."""
        if self.epoch > epoch:
            return False
        self.world.require(number == self.round + 1, f"round {number} follows {self.round}")
        last = self.committed[-1][0] if self.committed else 0
        self.world.require(epoch >= last, f"attempt {epoch} advances after attempt {last}")
        self.committed.append((epoch, number))
        self.round = number
        return True
