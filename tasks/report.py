"""What a person sees of a running job: a log line a round, and artifacts in the Prefect UI.

Artifacts are made on a thread of their own, so that no round waits for them.
"""

import base64
import contextvars
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
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

from prefect_federated.messages import JsonValue, human_bytes
from prefect_federated.transport.calls import Call, SiteReport

_TABLE_EVERY_S = 10.0
_BEFORE_METRICS = ("round", "kind", "sites", "began", "seconds", "bytes_sent", "bytes_received")
_COLUMNS = frozenset({*_BEFORE_METRICS, "failures"})


@dataclass(frozen=True)
class RoundReport:
    """What became of one call: one row of the job's table.

    Args:
        kind: The site task.
        round: The round, counted from 1; 0 outside rounds.
        began_at: When the call began, in seconds since the epoch.
        asked: Sites asked.
        answered: Sites whose update counted.
        seconds: From the call until its last reply.
        bytes_sent: Bytes to the sites, heads included.
        bytes_received: Bytes from the sites whose updates counted.
        metrics: Name -> mean over the sites, weighted.
        failures: Site -> reason.
    """

    kind: str
    round: int
    began_at: float
    asked: int
    answered: int
    seconds: float
    bytes_sent: int
    bytes_received: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(call: Call, began_at: float) -> "RoundReport":
        """Returns the report of a call that has ended."""
        reports = list(call.reports.values())
        answered = [report for report in reports if report.reason is None]
        return RoundReport(
            kind=call.kind,
            round=call.terms.round,
            began_at=began_at,
            asked=len(reports),
            answered=len(answered),
            seconds=max((report.seconds for report in reports), default=0.0),
            bytes_sent=sum(report.bytes_sent for report in reports),
            bytes_received=sum(report.bytes_received for report in reports),
            metrics=_mean_metrics(answered),
            failures={r.site: r.reason for r in reports if r.reason is not None},
        )

    def row(self) -> dict[str, JsonValue]:
        """Returns the report as a flat row of JSON values; metrics have 7 significant digits.

        A metric with the name of a column of ours, such as "seconds", becomes "site_seconds".
        """
        metrics = {
            f"site_{name}" if name in _COLUMNS else name: float(f"{value:.7g}")
            for name, value in self.metrics.items()
        }
        return {
            "round": self.round,
            "kind": self.kind,
            "sites": f"{self.answered}/{self.asked}",
            "began": datetime.fromtimestamp(self.began_at, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 4),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            **metrics,
            "failures": "; ".join(f"{site}: {why}" for site, why in self.failures.items()),
        }

    def line(self) -> str:
        """Returns the report as a line for the log."""
        what = f"round {self.round}" if self.round else self.kind
        metrics = "".join(f", {name} {value:.4g}" for name, value in self.metrics.items())
        failures = "".join(f"; {site}: {why}" for site, why in self.failures.items())
        return (
            f"{what}: {self.answered}/{self.asked} sites, {self.seconds:.2f} s, "
            f"{human_bytes(self.bytes_sent)} sent, {human_bytes(self.bytes_received)} received"
            f"{metrics}{failures}"
        )


def _mean_metrics(reports: list[SiteReport]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for report in reports:
        for name in report.metrics or {}:
            totals[name] = totals.get(name, 0.0) + report.metrics_weight
    means = {name: 0.0 for name, total in totals.items() if total > 0}
    for report in reports:
        for name in means.keys() & (report.metrics or {}).keys():
            share = report.metrics_weight / totals[name]  # at most 1, so that no product overflows
            means[name] += share * (report.metrics or {})[name]
    return means


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
        """Makes the artifact that links the job's model."""
        try:
            create_link_artifact(url, key=f"{self._key}-model", description=description)
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
        names = sorted(rows[-1].keys() - _COLUMNS) if rows else []
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
