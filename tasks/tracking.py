"""Follows a job's metrics: to TensorBoard, to MLflow, wherever a `Tracker` writes them.

Each tracker has a thread and a bounded queue of its own. No round waits for a tracker, and none
ends a job: one that fails is told of once, and tried again while the job runs.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from prefect.exceptions import Abort, Pause
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_federated.errors import ConfigurationError, StaleController
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.tasks.tracker_feed import Feed, MakeTracker
from prefect_federated.tracking import (
    LIVE,
    MetricPoint,
    Outcome,
    TrackedJob,
    Tracker,
    check_installed,
)
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment

MLFLOW_URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable, which says where it is."""

_SITES = 64  # runs of sites that a job has at most; a picture of more tells nothing
_END_S: Mapping[Outcome, float] = {
    "completed": 15.0, "failed": 15.0, "unfinished": 3.0, "cancelled": 3.0
}  # fmt: skip


class Tracking:
    """Feeds a job's metrics to trackers. Use as a context manager.

    Args:
        parameters: The job's parameters.
        trackers: Make where the metrics go, on the thread that writes them; see `wanted`.
    """

    def __init__(
        self, parameters: Mapping[str, JsonValue], trackers: Sequence[MakeTracker]
    ) -> None:
        self._log = get_run_logger()
        job = TrackedJob(
            id=str(flow_run.id or "simulated"),
            flow=(flow_run.flow_name or "job").replace("_", "-"),
            name=flow_run.name or "simulated",
            parameters=parameters,
        )
        self._feeds = [Feed(make, job, self._log.warning) for make in trackers]
        self._sites: set[str] = set()
        self._is_limit_told = False
        self._round = 0

    def __enter__(self) -> "Tracking":
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outcome = outcome_of(error)
        for feed in self._feeds:
            feed.end(outcome)
        deadline = time.monotonic() + _END_S[outcome]
        for feed in self._feeds:
            feed.wait(deadline)

    def listen_to(self, hub: Hub) -> None:
        """Follows what the sites say while they work, and what they answer."""
        if self._feeds:
            hub.listeners.append(self._told)

    def resume(self, round: int) -> None:
        """Notes that the job goes on after a round: what is recorded of later ones is void."""
        self._round = round
        for feed in self._feeds:
            feed.resume(round)

    def round_done(self, report: RoundReport) -> None:
        """Notes the means over the sites."""
        self._round = max(self._round, report.round)
        self._put(None, report.kind, report.round, report.metrics)

    def _told(self, moment: Moment) -> None:
        """Takes a moment of the hub's; never blocks."""
        if moment.name not in ("metrics_logged", "update_received"):
            return
        metrics = moment.detail.get("metrics")
        if not isinstance(metrics, Mapping) or not self._is_followed(moment.site):
            return
        numbers = {name: float(cast(float | str, value)) for name, value in metrics.items()}
        kind = str(moment.detail.get("kind"))
        if moment.name == "update_received":
            self._put(moment.site, kind, moment.round, numbers)
            return
        step, said = moment.detail.get("step"), moment.detail.get("time")
        now = time.time()
        when = said if isinstance(said, int | float) and 0 < said < now else now
        place = step if isinstance(step, int) else None
        points = [
            MetricPoint(moment.site, f"{LIVE}{kind}/{name}", value, place, when, moment.round)
            for name, value in numbers.items()
        ]
        for feed in self._feeds:
            feed.put(points)

    def _put(self, site: str | None, kind: str, round: int, metrics: Mapping[str, float]) -> None:
        step = round or self._round  # what is asked after the last round measures its model
        now = time.time()
        points = [
            MetricPoint(site, f"{kind}/{name}", value, step, now, step)
            for name, value in metrics.items()
        ]
        if points:
            for feed in self._feeds:
                feed.put(points)

    def _is_followed(self, site: str) -> bool:
        if site in self._sites:
            return True
        if len(self._sites) < _SITES:
            self._sites.add(site)
            return True
        if not self._is_limit_told:
            self._is_limit_told = True
            self._log.info("the metrics of %d sites are tracked, and the means of all", _SITES)
        return False


def wanted(tensorboard: Path | None, warn: Callable[[str], object]) -> list[MakeTracker]:
    """Returns what makes the trackers that are asked for; warns of those that are not installed.

    Args:
        tensorboard: Folder for TensorBoard's event files; None for none.
        warn: Is told what is missing, and what to do.
    """
    found: list[MakeTracker] = []
    if tensorboard is not None and _is_installed("tensorboard", f"folder {tensorboard}", warn):
        found.append(lambda: _tensorboard(tensorboard))
    uri = os.environ.get(MLFLOW_URI)
    if uri and _is_installed("mlflow", MLFLOW_URI, warn):
        found.append(lambda: _mlflow(uri))
    return found


def outcome_of(error: BaseException | None) -> Outcome:
    """Returns how a job ended, of what its flow raised."""
    if error is None:
        return "completed"
    told = error.__cause__ if isinstance(error, Abort) and error.__cause__ else error
    if isinstance(told, StaleController | Pause):  # it goes on: elsewhere, or later
        return "unfinished"
    return "failed" if isinstance(told, Exception) else "cancelled"


def _is_installed(extra: str, option: str, warn: Callable[[str], object]) -> bool:
    try:
        check_installed(extra, option)
    except ConfigurationError as error:
        warn(str(error))
        return False
    return True


def _tensorboard(folder: Path) -> Tracker:
    from prefect_federated.adapters.tensorboard import TensorBoard

    return TensorBoard(folder)


def _mlflow(uri: str) -> Tracker:
    from prefect_federated.adapters.mlflow import MLflow

    return MLflow(uri, os.environ.get("MLFLOW_EXPERIMENT_NAME"))
