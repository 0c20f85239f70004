"""What a person sees of a running job: a log line a round, and artifacts in the Prefect UI.

Artifacts are made on a thread of their own, so that no round waits for them.
"""

import base64
import contextvars
import queue
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_federated.messages import JsonValue
from prefect_federated.tasks.round_report import COLUMNS, RoundReport

_TABLE_EVERY_S = 10.0


class Reporter:
    """Writes a job's log lines and artifacts, and keeps its table. Use as a context manager.

    Args:
        rounds: Rounds that the job has, for the progress; None if it does not count rounds.
    """

    def __init__(self, rounds: int | None) -> None:
        self.history: list[dict[str, JsonValue]] = []
        self._rounds = rounds
        self._log = get_run_logger()
        self._key = (flow_run.flow_name or "job").lower().replace("_", "-")
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._publish,), name="reporter", daemon=True
        )

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.put(False)
        self._thread.join()

    def resume(self, history: Iterable[Mapping[str, JsonValue]], round: int) -> None:
        """Takes over the table of an earlier attempt, up to the round that it was saved after."""
        self.history = [dict(row) for row in history]
        self._log.info("resuming after round %d", round)

    def round_done(self, report: RoundReport) -> None:
        """Logs one line and adds a row to the table."""
        self._log.info("%s", report.line())
        self.history.append(report.row())
        self._wanted.put(True)

    def link_model(self, url: str, description: str) -> None:
        """Makes the artifact that links a model of the job, called as the file is."""
        try:
            name = re.sub(r"[^a-z0-9]+", "-", PurePath(url).stem.lower())
            create_link_artifact(url, key=f"{self._key}-{name}", description=description)
        except Exception:  # a job does not fail because its model could not be linked
            self._log.warning("the model could not be linked in the UI", exc_info=True)

    def _publish(self) -> None:
        """Keeps the progress artifact fresh, the table every few seconds, and all at the end."""
        try:
            progress = create_progress_artifact(
                self._progress(), key=f"{self._key}-progress", description="Rounds done, percent"
            )
            assert isinstance(progress, UUID)  # Prefect's type tells of a coroutine, too
            going_on, shown = True, 0
            while going_on:
                going_on = self._wait()
                update_progress_artifact(progress, progress=self._progress())
                if len(self.history) > shown:
                    shown = len(self.history)
                    self._publish_table()
            self._publish_curves()
        except Exception:  # a job does not end because a picture of it could not be made
            self._log.warning("artifacts could not be written", exc_info=True)

    def _wait(self) -> bool:
        """Waits until something is new and some seconds have passed, or the job ends (False)."""
        deadline = threading.Event()
        if not self._wanted.get():
            return False
        timer = threading.Timer(_TABLE_EVERY_S, deadline.set)
        timer.start()
        try:
            while not deadline.is_set():
                try:
                    if not self._wanted.get(timeout=0.5):
                        return False
                except queue.Empty:
                    continue
            return True
        finally:
            timer.cancel()

    def _progress(self) -> float:
        done = max((int(str(row["round"])) for row in self.history), default=0)
        return 100.0 * done / self._rounds if self._rounds else 0.0

    def _publish_table(self) -> None:
        columns = dict.fromkeys(name for row in self.history for name in row)
        create_table_artifact(  # the UI takes the columns from the first row
            table=[{name: row.get(name, "") for name in columns} for row in self.history],
            key=f"{self._key}-rounds",
            description="One row a call to the sites; metrics are means over the sites",
        )

    def _publish_curves(self) -> None:
        rows = [row for row in self.history if row["kind"] == "train"]
        names = sorted(rows[-1].keys() - COLUMNS) if rows else []
        if not names:
            return
        try:
            from prefect_federated.adapters.plot import curves_png
        except ImportError:
            self._log.info("no picture of the curves: install prefect-federated[plot]")
            return
        complete = [row for row in rows if all(name in row for name in names)]
        picture = curves_png(
            [int(str(row["round"])) for row in complete],
            {name: [float(str(row[name])) for row in complete] for name in names},
        )
        encoded = base64.b64encode(picture).decode()
        last = " · ".join(f"{name} {complete[-1][name]}" for name in names)
        create_markdown_artifact(
            f"# {self._key}\n\nLast round: {last}\n\n![metrics by round]"
            f"(data:image/png;base64,{encoded})\n",
            key=f"{self._key}-curves",
            description="Metrics by round, means over the sites",
        )
