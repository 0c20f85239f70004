"""Writes a job's metrics to one tracker: a thread, a bounded queue, and patience with failures."""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from prefect_federated.tracking import (
    Axis,
    MetricPoint,
    Outcome,
    TrackedJob,
    Tracker,
    without_credentials,
)

MakeTracker: TypeAlias = Callable[[], Tracker]

_WAITING = 50_000  # points that wait at most; then the oldest go
_GATHER_S = 0.5
_RETRY_S = 15.0


class Feed:
    """Writes what it is given to one tracker, on a thread of its own.

    What fails is told of once, and tried again while the job runs.

    Args:
        make: Makes the tracker, on that thread: its library may take seconds to import.
        job: The job.
        warn: A log's `warning`.
    """

    def __init__(self, make: MakeTracker, job: TrackedJob, warn: Callable[..., None]) -> None:
        self._make = make
        self._job = job
        self._warn = warn
        self._changed = threading.Condition()
        self._waiting: deque[MetricPoint] = deque()
        self._lost = 0
        self._outcome: Outcome | None = None
        # What only its thread uses:
        self._tracker: Tracker | None = None
        self._axis: Axis | None = None
        self._placed: list[MetricPoint] = []
        self._is_failing = False
        context = contextvars.copy_context()  # from which Prefect's log knows the flow run
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="tracker", daemon=True
        )

    def start(self) -> None:
        """Starts the thread, which opens the records when there is something to record."""
        self._thread.start()

    def resume(self, round: int) -> None:
        """Notes after which round the job goes on."""
        self._job = replace(self._job, after_round=round)

    def put(self, points: Sequence[MetricPoint]) -> None:
        """Takes points; those that have waited longest go when there are too many."""
        with self._changed:
            self._waiting.extend(points)
            while len(self._waiting) > _WAITING:
                self._waiting.popleft()
                self._lost += 1
            self._changed.notify()

    def end(self, outcome: Outcome) -> None:
        """Notes that nothing more comes."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def wait(self, deadline: float) -> None:
        """Waits until all is written, or for the deadline (monotonic seconds)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(
                "%s is too slow: the job ends without the last metrics there", self._called()
            )

    def _run(self) -> None:
        outcome: Outcome | None = None
        while outcome is None:
            outcome = self._outcome
            try:
                if self._tracker is None:
                    self._tracker = self._make()
                if outcome is None:
                    self._wait_for_points()
                    outcome = self._outcome
                self._write(self._tracker)
                if outcome is not None:
                    self._tracker.end(outcome)
            except Exception as error:  # a library of another's: no reason to end a job
                self._failed(error)
                if outcome is None:
                    with self._changed:
                        self._changed.wait_for(lambda: self._outcome is not None, _RETRY_S)
                elif self._placed or self._waiting:
                    lost = self._lost + len(self._placed) + len(self._waiting)
                    self._warn("%s did not get %d values", self._called(), lost)
            else:
                self._works()

    def _wait_for_points(self) -> None:
        """Waits until there is something to write, and a moment for more of it, or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._placed or self._outcome)
            self._changed.wait_for(lambda: self._outcome, _GATHER_S)

    def _write(self, tracker: Tracker) -> None:
        """Writes what waits; what could not be written is kept for the next time."""
        if self._axis is None:
            self._axis = Axis(tracker.begin(self._job))
        while self._placed or self._take(self._axis):
            try:
                tracker.write(self._placed)
            except ValueError:  # not even later
                self._lost += len(self._placed)
                self._placed = []
                raise
            self._placed = []

    def _take(self, axis: Axis) -> list[MetricPoint]:
        """Returns what waits and is not recorded already, which then is what is to be written."""
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        self._placed = [placed for point in waiting if (placed := axis.placed(point)) is not None]
        return self._placed

    def _failed(self, error: Exception) -> None:
        if self._is_failing:
            return
        self._is_failing = True
        why = (
            f"{type(error).__name__}: {without_credentials(str(error))}"
            if self._tracker is None
            else self._tracker.explain(error)
        )
        self._warn(
            "%s takes no metrics: %s The job goes on, and tries it again every %g s.",
            self._called(), why, _RETRY_S,
        )  # fmt: skip

    def _works(self) -> None:
        if self._is_failing:
            self._is_failing = False
            self._warn("%s takes metrics again; %d values were lost", self._called(), self._lost)
        self._lost = 0

    def _called(self) -> str:
        return "a tracker" if self._tracker is None else self._tracker.name
