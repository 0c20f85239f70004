"""A job's metrics as TensorBoard event files. Installed with the extra `tensorboard`.

A folder a site, and one for the means, under `<flow>-<run name>`: `tensorboard --logdir` shows them
side by side. The records are written by TensorBoard's own writer; neither TensorFlow nor PyTorch is
imported.
"""

import json
import math
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.errors import OpError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

from prefect_federated.tracking import (
    LIVE,
    MetricPoint,
    Outcome,
    Recorded,
    Series,
    TrackedJob,
)

GLOBAL = "global"
"""The run with the means over the sites."""

_JOB_FILE = "job.json"
_FILES = "events.out.tfevents.*"


class TensorBoard:
    """Writes a job's metrics as event files, one a run and attempt of the job.

    Args:
        folder: What `tensorboard --logdir` is given; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._base = folder
        self._folder = folder
        self._writers: dict[str | None, RecordWriter] = {}

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"TensorBoard ({self._base})"

    def begin(self, job: TrackedJob) -> Recorded:
        """Opens the job's folder; takes what is void out of the files of an earlier attempt.

        Raises:
            OSError: it cannot be written to.
        """
        self._folder = _folder_of(job, self._base)
        recorded: dict[Series, dict[int, float]] = defaultdict(dict)
        for folder in self._folder.iterdir():
            if folder.is_dir():
                site = None if folder.name == GLOBAL else _site_of(folder)
                for event in _still_valid(folder, job.after_round):
                    for value in event.summary.value:
                        recorded[site, value.tag][event.step] = value.simple_value
        return recorded

    def write(self, points: Sequence[MetricPoint]) -> None:
        """Appends points to their runs' files.

        Raises:
            OSError: the disk is full.
        """
        touched = set()
        for point in points:
            value = Summary.Value(tag=point.name, simple_value=_single(point.value))
            event = Event(
                wall_time=point.time_s, step=point.step or 0, summary=Summary(value=[value])
            )
            self._writer(point.site).write(event.SerializeToString())
            touched.add(point.site)
        for site in touched:
            self._writers[site].flush()

    def end(self, outcome: Outcome) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def explain(self, error: Exception) -> str:
        """Returns why it failed and what to do."""
        return f"{type(error).__name__}: {error}. See that {self._base} can be written to."

    def _writer(self, site: str | None) -> RecordWriter:
        if site not in self._writers:
            folder = self._folder / (GLOBAL if site is None else _file_name(site))
            folder.mkdir(exist_ok=True)
            if site is not None:
                (folder / "site.json").write_text(json.dumps({"site": site}))
            self._writers[site] = _new_file(folder)
        return self._writers[site]


def _folder_of(job: TrackedJob, base: Path) -> Path:
    """Returns the job's folder, the same in each attempt and no other job's."""
    plain = base / _file_name(f"{job.flow}-{job.name}")
    for folder in (plain, plain.with_name(f"{plain.name}-{_file_name(job.id[:8])}")):
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / _JOB_FILE
        if not mark.exists():
            mark.write_text(json.dumps({"job": job.id}))
        if json.loads(mark.read_text()).get("job") == job.id:
            return folder
    raise FileExistsError(f"{folder} belongs to another job.")


def _still_valid(folder: Path, after_round: int) -> Iterable[Event]:
    """Returns a run's events up to a round, and writes them anew if there were others."""
    files = sorted(folder.glob(_FILES))
    events = [event for file in files for event in _events_in(file) if event.summary.value]
    valid = {
        (*(value.tag for value in event.summary.value), event.step): event
        for event in events
        if _is_live(event) or event.step <= after_round
    }
    if len(valid) < len(events):
        _new_file(folder, valid.values(), begins=True).close()
        for file in files:
            os.truncate(file, 0)  # a TensorBoard that shows it would not get past a missing file
    return valid.values()


def _is_live(event: Event) -> bool:
    return any(value.tag.startswith(LIVE) for value in event.summary.value)


def _new_file(folder: Path, events: Iterable[Event] = (), begins: bool = False) -> RecordWriter:
    """Makes an event file that stands after those there by its name, and opens it.

    Args:
        folder: The run's folder.
        events: What it begins with.
        begins: Whether what a TensorBoard has read before in this folder is void.
    """
    taken = [int(file.name.split(".")[3]) for file in folder.glob(_FILES)]
    number = max([int(time.time()), *(number + 1 for number in taken)])
    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"
    part = folder / f"{name}.part".replace("tfevents", "new")
    writer = RecordWriter(part.open("wb"))
    first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    if begins or not taken:
        start = SessionLog(status=SessionLog.START)
        first.append(Event(wall_time=time.time(), step=0, session_log=start))
    for event in (*first, *events):
        writer.write(event.SerializeToString())
    writer.flush()
    part.replace(folder / name)  # whole from the beginning
    return writer


def _events_in(file: Path) -> Iterator[Event]:
    """Yields a file's events, up to where a process that was killed has torn it."""
    reader = PyRecordReader_New(str(file))
    while True:
        try:
            reader.GetNext()
        except OpError:
            return
        yield Event.FromString(reader.record())


def _single(value: float) -> float:
    """Returns a value that single precision holds; what is too large for it is infinite."""
    too_large = math.isfinite(value) and abs(value) > 3.4028234e38
    return math.copysign(math.inf, value) if too_large else value


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.-]+", "_", text).lstrip(".") or "_"
    return f"{name}-site" if name == GLOBAL else name


def _site_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "site.json").read_text())["site"])
    except (OSError, ValueError, KeyError):
        return folder.name
