"""The progress of a simulated job in a terminal: round, sites that have answered, a metric."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prefect_federated.messages import JsonValue
from prefect_federated.transport.inproc import Watcher

MakeWatcher: TypeAlias = Callable[[int | None], Watcher]


@contextmanager
def showing_progress(console: Console | None = None) -> Iterator[MakeWatcher | None]:
    """Shows progress on standard error while the block runs; yields None if it is no terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} sites"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress, _logs_above():
        yield lambda rounds: RoundProgress(progress, rounds)


class RoundProgress:
    """Shows the sites asked and answered of the newest round, and the mean of their first metric.

    Args:
        progress: Where it is shown.
        rounds: Rounds of the job, if it counts them.
    """

    def __init__(self, progress: Progress, rounds: int | None) -> None:
        self._progress = progress
        self._rounds = rounds
        self._lock = threading.Lock()
        self._shown: TaskID | None = None
        self._of: tuple[str, int] | None = None
        self._asked = self._answered = self._failed = 0
        self._values: list[float] = []

    def asked(self, kind: str, round: int) -> None:
        """Notes that a site was asked; the first of a new round begins it."""
        with self._lock:
            if (kind, round) != self._of:
                if self._of is not None and round < self._of[1] and round != 0:
                    return  # a late one
                self._of = (kind, round)
                self._asked = self._answered = self._failed = 0
                self._values = []
            self._asked += 1
            self._show()

    def answered(self, kind: str, round: int, answer: Mapping[str, JsonValue]) -> None:
        """Notes that a site has answered."""
        with self._lock:
            if (kind, round) != self._of:
                return
            self._answered += 1
            self._failed += "error" in answer
            metrics = answer.get("metrics")
            if isinstance(metrics, dict) and metrics:
                self._metric, value = next(iter(metrics.items()))
                if isinstance(value, int | float):
                    self._values.append(value)
            self._show()

    def _show(self) -> None:
        kind, round = self._of or ("", 0)
        of = f"/{self._rounds}" if self._rounds else ""
        what = f"round {round}{of}" if round else kind
        note = f"{self._failed} failed  " if self._failed else ""
        if self._values:
            note += f"{self._metric} {sum(self._values) / len(self._values):.4g}"
        if self._shown is None:
            self._shown = self._progress.add_task(what, note=note)
        self._progress.update(
            self._shown,
            description=what,
            completed=self._answered,
            total=self._asked,
            note=note,
        )


@contextmanager
def _logs_above() -> Iterator[None]:
    """Makes log lines go to standard error as it is now, where they appear above the progress."""
    with ExitStack() as after:
        names = ["", *logging.root.manager.loggerDict]
        for handler in {h for name in names for h in logging.getLogger(name).handlers}:
            console = getattr(handler, "console", None)  # Prefect writes through one of rich
            where: object = console if isinstance(console, Console) else handler
            attribute = "file" if isinstance(console, Console) else "stream"
            before = getattr(where, attribute, None)
            if before is sys.__stderr__:
                setattr(where, attribute, sys.stderr)
                after.callback(setattr, where, attribute, before)
        yield
