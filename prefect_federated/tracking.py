"""What follows a job's metrics: a small interface, behind which TensorBoard and MLflow stand.

A tracker sees points: one value of one metric, of one site or of the mean over all. It may be slow
and it may fail; who feeds it (`tasks.tracking`) has a thread for it, and no job waits.
"""

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue

Outcome: TypeAlias = Literal["completed", "failed", "cancelled", "unfinished"]
"""How a job ended; "unfinished" if it goes on later, or elsewhere."""

Series: TypeAlias = tuple[str | None, str]
"""A site, or None for the mean over the sites; and the name of a metric."""

Recorded: TypeAlias = Mapping[Series, Mapping[int, float]]
"""What a tracker holds of a job: series -> step -> value."""

LIVE = "live/"
"""Begins the names of what sites tell while they work, whose steps are the sites' own."""

_LARGEST = 1 << 53  # step that a site may name


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric.

    Args:
        site: Whose it is; None for the mean over the sites.
        name: "<site task>/<metric>", such as "train/val_loss", whose steps are rounds; with "live/"
            before it, what the site told while it worked.
        value: Any float; nan and infinities are shown as what they are.
        step: Where it stands on the axis; None, for a live one, means after the one before.
        time_s: When it was measured, in seconds since 1970.
        round: The round in which it was measured.
    """

    site: str | None
    name: str
    value: float
    step: int | None
    time_s: float
    round: int

    @property
    def series(self) -> Series:
        """The series that it belongs to."""
        return self.site, self.name


@dataclass(frozen=True, slots=True)
class TrackedJob:
    """A job as trackers know it.

    Args:
        id: The same in each attempt of the job.
        flow: The kind of job, such as "fedavg".
        name: Its name among people.
        parameters: The job's parameters.
        after_round: The round after which this attempt goes on; what was recorded of later rounds
            is void.
    """

    id: str
    flow: str
    name: str
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    after_round: int = 0


class Tracker(Protocol):
    """Where a job's metrics go. All is called on one thread; it may take its time, and raise.

    What has raised is called again later, with the same arguments or more.
    """

    @property
    def name(self) -> str:
        """What it is called in the log, and where it writes to; without credentials."""
        ...

    def begin(self, job: TrackedJob) -> Recorded:
        """Opens the records of a job; returns what is there already of an earlier attempt."""
        ...

    def write(self, points: Sequence[MetricPoint]) -> None:
        """Records points, each of which has a step.

        Raises:
            ValueError: some cannot be recorded, now or later; all of them are dropped.
        """
        ...

    def end(self, outcome: Outcome) -> None:
        """Closes the records."""
        ...

    def explain(self, error: Exception) -> str:
        """Returns why it failed and what to do, in sentences that may be logged."""
        ...


class Axis:
    """Gives each point its step, and knows what is recorded already.

    Rounds are the steps of what is measured once a round. Sites count their own steps as they like,
    over the job or anew in each round; what begins anew is put after the round before.

    Args:
        recorded: What an earlier attempt of the job has recorded.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._last = {series: max(steps) for series, steps in recorded.items() if steps}
        self._shift: dict[Series, tuple[int, int]] = {}  # series -> round, what is added in it

    def placed(self, point: MetricPoint) -> MetricPoint | None:
        """Returns the point with its step; None if it is recorded already."""
        if not point.name.startswith(LIVE):
            before = self._recorded.get(point.series, {}).get(point.step or 0)
            return None if before is not None and _is_same(before, point.value) else point
        last = self._last.get(point.series)
        if point.step is None:
            step = 0 if last is None else last + 1
        else:
            step = min(max(point.step, 0), _LARGEST)
            round, shift = self._shift.get(point.series, (-1, 0))
            if round != point.round:
                begins_anew = last is not None and step <= last
                shift = last + (step == 0) if last is not None and begins_anew else 0
                self._shift[point.series] = (point.round, shift)
            step += shift
        self._last[point.series] = step if last is None else max(step, last)
        return replace(point, step=step)


def _is_same(one: float, other: float) -> bool:
    """Whether two values are the same where single precision is all that is kept."""
    return math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))


def check_installed(extra: str, option: str) -> None:
    """Raises `ConfigurationError` if a tracker that an option asks for is not installed.

    Args:
        extra: The package, which is also the name of our extra: "tensorboard" or "mlflow".
        option: What asks for it, for the message.
    """
    if importlib.util.find_spec(extra) is None:
        raise ConfigurationError(
            f"{option} asks for {extra}, which is not installed: pip install "
            f"'prefect-federated[{extra}]' here, or leave it out."
        )


def without_credentials(text: str, url: str = "") -> str:
    """Returns a text that may be logged: no user and password of any URL in it, nor those of `url`.

    >>> without_credentials("cannot reach https://ann:secret@host/api")
    'cannot reach https://***@host/api'
    """
    try:
        parts = urlsplit(url)
        secrets = [parts.password, unquote(parts.password or ""), parts.query]
    except ValueError:
        secrets = [url]
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)
