"""What a person sees of a running job: lines of its log, and artifacts in the Prefect UI.

Artifacts are made on a thread of their own, so that no round waits for them.
"""

import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath

from prefect.artifacts import create_link_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_federated.messages import JsonValue
from prefect_federated.tasks.artifacts import Artifacts, key_of
from prefect_federated.tasks.at_work import AtWork
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment

_LOOK_S = 1.0
_TABLE_EVERY_S = 10.0
_CURVES_AFTER_S = 60.0  # then after twice as long, and so on: each is a picture in the database
_LINE_EVERY_S = 15.0


class Reporter:
    """Writes a job's log lines and artifacts, and keeps its table. Use as a context manager.

    Args:
        rounds: Rounds that the job has, for the progress; None if it does not count rounds.
    """

    def __init__(self, rounds: int | None) -> None:
        self.history: list[dict[str, JsonValue]] = []
        self.on_round: list[Callable[[RoundReport], None]] = []
        """Told of each row."""
        self.on_resume: list[Callable[[int], None]] = []
        """Told of the round after which the job goes on."""
        self._rounds = rounds
        self._log = get_run_logger()
        self._key = key_of(flow_run.flow_name or "job")
        self._at_work = AtWork()
        self._has_news = threading.Event()
        self._is_over = threading.Event()
        self._line_after = time.monotonic() + _LINE_EVERY_S
        self._has_a_line = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._publish,), name="reporter", daemon=True
        )

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._has_news.set()
        self._thread.join()

    def listen_to(self, hub: Hub) -> None:
        """Shows what sites say of how far they are, too."""
        hub.listeners.append(self._told)

    def resume(self, history: Iterable[Mapping[str, JsonValue]], round: int) -> None:
        """Takes over the table of an earlier attempt, up to the round that it was saved after."""
        self.history = [dict(row) for row in history]
        self._log.info("resuming after round %d", round)
        for tell in self.on_resume:
            tell(round)

    def round_done(self, report: RoundReport) -> None:
        """Logs one line and adds a row to the table."""
        self._log.info("%s", report.line())
        self._line_after = time.monotonic() + _LINE_EVERY_S
        self._has_a_line = False
        self.history.append(report.row())
        self._has_news.set()
        for tell in self.on_round:
            tell(report)

    def link_model(self, url: str, description: str) -> None:
        """Makes the artifact that links a model of the job, called as the file is."""
        try:
            name = key_of(PurePath(url).stem)
            create_link_artifact(url, key=f"{self._key}-{name}", description=description)
        except Exception:  # a job does not fail because its model could not be linked
            self._log.warning("the model could not be linked in the UI", exc_info=True)

    def _told(self, moment: Moment) -> None:
        """Takes a moment of the hub's; never blocks."""
        if dropped := moment.detail.get("dropped"):
            self._log.warning("%s dropped %s values: it logs too many", moment.site, dropped)
        if self._at_work.told(moment):
            self._has_a_line = True
            self._has_news.set()

    def _publish(self) -> None:
        """Keeps the artifacts fresh, each as often as it is worth, and all at the end."""
        try:
            artifacts = Artifacts(self._key, self._log.info)
            artifacts.progress(self._progress())
            table_at = time.monotonic() + _TABLE_EVERY_S
            curves_at, pause_s = time.monotonic() + _CURVES_AFTER_S, _CURVES_AFTER_S
            in_progress = in_table = in_curves = 0
            while not self._is_over.is_set():
                self._has_news.wait()
                self._has_news.clear()
                now, rows = time.monotonic(), len(self.history)
                if rows > in_progress:
                    in_progress = rows
                    artifacts.progress(self._progress())
                if rows > in_table and now >= table_at:
                    in_table, table_at = rows, now + _TABLE_EVERY_S
                    artifacts.table(self.history)
                if rows > in_curves and now >= curves_at:
                    pause_s *= 2
                    in_curves, curves_at = rows, now + pause_s
                    artifacts.curves(self.history)
                is_more = self._show_a_site(artifacts)
                self._log_a_line(now)
                if is_more or self._has_a_line or rows > min(in_table, in_curves):
                    self._has_news.set()  # come again
                self._is_over.wait(_LOOK_S)
            artifacts.progress(self._progress())
            if self.history:
                artifacts.table(self.history)
                artifacts.curves(self.history)
            while self._show_a_site(artifacts):
                pass
        except Exception:  # a job does not end because a picture of it could not be made
            self._log.warning("artifacts could not be written", exc_info=True)

    def _show_a_site(self, artifacts: Artifacts) -> bool:
        """Shows the site whose news wait longest; False if there are none."""
        changed = self._at_work.changed()
        if changed is not None:
            artifacts.site(*changed)
        return changed is not None

    def _log_a_line(self, now: float) -> None:
        if self._has_a_line and now >= self._line_after:
            self._has_a_line = False
            if line := self._at_work.line():
                self._line_after = now + _LINE_EVERY_S
                self._log.info("%s", line)

    def _progress(self) -> float:
        done = max((int(str(row["round"])) for row in self.history), default=0)
        return 100.0 * done / self._rounds if self._rounds else 0.0
