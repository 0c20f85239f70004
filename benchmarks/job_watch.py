"""What can be seen of a running job from outside, while its processes come and go.

Two signs, both files: the snapshots that its controller writes, each of which says which round is
done and by whom; and the lines that its sites leave as they begin a site task.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.exact_model import COUNTED
from prefect_federated.errors import SnapshotCorrupt
from prefect_federated.model_file import map_model

_LOOK_EVERY_S = 0.03


@dataclass(frozen=True)
class Done:
    """A round that was snapshotted: by whom, in which file, and when (seconds since the epoch)."""

    round: int
    sites: frozenset[str]
    file: str
    at: float


@dataclass(frozen=True)
class Begun:
    """A site task as its site saw it begin."""

    site: str
    round: int
    pid: int
    at: float


@dataclass
class JobWatch:
    """Looks at a job, again and again, on a thread of its own. Use as a context manager.

    Args:
        snapshots: The job's folder in the server's result storage.
        calls: The file in which the sites leave a line for each site task.
        sites: The sites' names, in the order of the model's table.
    """

    snapshots: Path
    calls: Path
    sites: Sequence[str]
    done: list[Done] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Rounds that were done again though they had been snapshotted: what was seen of each."""
    _read_bytes: int = 0
    _pointer: bytes = b""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def round(self) -> int:
        """The last round that was snapshotted; 0 before the first."""
        return self.done[-1].round if self.done else 0

    def next_round_at(self, after: float, site: str | None = None) -> float | None:
        """Returns when the first round was done whose work began after a time; None if none is.

        Args:
            after: Seconds since the epoch: a site task of the round must have begun later.
            site: The site whose task it must be, and which must have been counted; None for any.
        """
        rounds = {c.round for c in list(self.begun) if c.at > after and site in (None, c.site)}
        for done in list(self.done):
            if done.at > after and done.round in rounds and (site is None or site in done.sites):
                return done.at
        return None

    def _look_on(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self._look_at_calls()
            self._look_at_snapshots()

    def _look_at_calls(self) -> None:
        try:
            with self.calls.open("rb") as file:
                file.seek(self._read_bytes)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self.begun += [Begun(**json.loads(line)) for line in whole.splitlines()]

    def _look_at_snapshots(self) -> None:
        try:
            pointer = (self.snapshots / "snapshots.json").read_bytes()
        except FileNotFoundError:
            return
        if pointer == self._pointer:
            return
        at, newest = time.time(), json.loads(pointer)["newest"]
        if not newest:
            return
        round, file = int(newest[0]["round"]), str(newest[0]["files"]["model"]["path"])
        if self.done and file == self.done[-1].file:
            self._pointer = pointer  # another attempt has signed it
            return
        try:
            row = np.array(map_model(Path(file))[COUNTED][round - 1])
        except (SnapshotCorrupt, KeyError):
            return  # replaced meanwhile: the next look sees what is there then
        self._pointer = pointer
        if round <= self.round:
            self.lost.append(f"round {round} was snapshotted again, after round {self.round}")
        sites = frozenset(self.sites[int(place)] for place in np.flatnonzero(row))
        self.done.append(Done(round, sites, file, at))
