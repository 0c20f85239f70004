"""The progress of a simulated job in a terminal: the round, and what each site is doing."""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prefect_federated.messages import JsonValue
from prefect_federated.transport.signals import Moment

_SITES_SHOWN = 8


@contextmanager
def showing_progress(console: Console | None = None) -> Iterator["JobProgress | None"]:
    """Shows progress on standard error while the block runs; yields None if it is no terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress, _logs_above():
        yield JobProgress(progress)


@dataclass
class _Site:
    """What a site at work has said: how far it is, its newest metric."""

    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    note: str = ""


class JobProgress:
    """Shows the sites asked and answered of the newest round, and the mean of their first metric.

    Sites that say how far they are get a line each, up to 8; of more, their number is shown.

    Args:
        progress: Where it is shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rounds: int | None = None
        self._lock = threading.Lock()
        self._shown: TaskID | None = None
        self._of: tuple[str, int] | None = None
        self._asked = self._answered = self._failed = 0
        self._values: list[float] = []
        self._at_work: dict[str, _Site] = {}
        self._lines: dict[str, TaskID] = {}

    def watcher(self, rounds: int | None) -> "JobProgress":
        """Returns this, which from now on knows how many rounds the job has."""
        self._rounds = rounds
        return self

    def asked(self, kind: str, round: int) -> None:
        """Notes that a site was asked; the first of a new round begins it."""
        with self._lock:
            if (kind, round) != self._of:
                if self._of is not None and round < self._of[1] and round != 0:
                    return  # a late one
                self._of = (kind, round)
                self._asked = self._answered = self._failed = 0
                self._values = []
                self._at_work.clear()
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

    def told(self, moment: Moment) -> None:
        """Takes what a site says while it works, and that its update has come."""
        with self._lock:
            detail = moment.detail
            if (str(detail.get("kind")), moment.round) != self._of:
                return
            if moment.name == "progressed":
                site = self._at_work.setdefault(moment.site, _Site())
                site.done, site.total = (
                    float(cast(float, detail.get(key, 0))) for key in ("done", "total")
                )
                site.unit = str(detail.get("unit", ""))
            elif moment.name == "metrics_logged" and isinstance(detail.get("metrics"), dict):
                site = self._at_work.setdefault(moment.site, _Site())
                metrics = cast(dict[str, float | str], detail["metrics"])
                for name, value in list(metrics.items())[:1]:
                    site.note = f"{name} {float(value):.4g}"
            elif moment.name == "update_received":
                self._at_work.pop(moment.site, None)
            else:
                return
            self._show()

    def _show(self) -> None:
        kind, round = self._of or ("", 0)
        of = f"/{self._rounds}" if self._rounds else ""
        what = f"round {round}{of}" if round else kind
        note = f"{self._failed} failed  " if self._failed else ""
        if self._values:
            note += f"{self._metric} {sum(self._values) / len(self._values):.4g}"
        if len(self._at_work) > _SITES_SHOWN:
            note += f"  {len(self._at_work)} at work"
        if self._shown is None:
            self._shown = self._progress.add_task(what, count="", note=note)
        self._progress.update(
            self._shown,
            description=what,
            completed=self._answered,
            total=self._asked,
            count=f"{self._answered}/{self._asked} sites",
            note=note,
        )
        self._show_sites()

    def _show_sites(self) -> None:
        """Gives each site at work its line; takes the lines of the others away."""
        wanted = self._at_work if len(self._at_work) <= _SITES_SHOWN else {}
        for name in [name for name in self._lines if name not in wanted]:
            self._progress.remove_task(self._lines.pop(name))
        for name, site in wanted.items():
            if name not in self._lines:
                self._lines[name] = self._progress.add_task(f"  {name}", count="", note="")
            self._progress.update(
                self._lines[name],
                completed=site.done,
                total=site.total or None,
                count=f"{site.unit} {site.done:g}/{site.total:g}" if site.total else "",
                note=site.note,
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
