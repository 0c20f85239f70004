"""Event files, read back by TensorBoard's own readers."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from prefect_federated.adapters.tensorboard import TensorBoard
from prefect_federated.tracking import LIVE, MetricPoint, TrackedJob

JOB = TrackedJob("5ffa9aa3-ef80", "fedavg", "tall cricket")
FOLDER = "fedavg-tall_cricket"


def point(site: str | None, step: int, value: float, name: str = "train/loss") -> MetricPoint:
    return MetricPoint(site, name, value, step, 1_700_000_000.0 + step, step)


def written(folder: Path, points: Sequence[MetricPoint], job: TrackedJob = JOB) -> None:
    tracker = TensorBoard(folder)
    tracker.begin(job)
    tracker.write(points)
    tracker.end("completed")


def scalars(run: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """Returns a run's scalars as TensorBoard shows them: step and value."""
    reader = EventAccumulator(str(run))
    reader.Reload()
    if tag not in reader.Tags()["tensors"]:
        return []
    return [(event.step, float(event.tensor_proto.float_val[0])) for event in reader.Tensors(tag)]


def test_a_logdir_shows_a_run_a_site_and_one_for_the_means(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    assert tracker.begin(JOB) == {}
    tracker.write([point("site-1", 1, 0.5), point("site-2", 1, 0.75), point(None, 1, 0.625)])
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(shown.Runs()) == {f"{FOLDER}/{run}" for run in ("site-1", "site-2", "global")}
    tracker.write([point("site-1", 2, 0.25)])  # the file is not closed: it is shown as it grows
    assert scalars(tmp_path / FOLDER / "site-1") == [(1, 0.5), (2, 0.25)]
    (event,) = shown.Tensors(f"{FOLDER}/global", "train/loss")
    assert (event.wall_time, event.step) == (1_700_000_001.0, 1)
    tracker.end("completed")


def test_values_that_are_not_finite_are_shown_as_what_they_are(tmp_path: Path) -> None:
    values = [math.nan, math.inf, -math.inf, 1e300, -0.0]
    written(tmp_path, [point("a", step, value) for step, value in enumerate(values)])
    nan, *others = [value for _, value in scalars(tmp_path / FOLDER / "a")]
    assert math.isnan(nan)
    assert others == [math.inf, -math.inf, math.inf, 0.0]


def test_a_job_that_goes_on_shows_the_rounds_after_its_snapshot_once(tmp_path: Path) -> None:
    live = [point("a", step, step / 10, f"{LIVE}train/loss") for step in range(1, 7)]
    written(tmp_path, [point("a", 1, 0.5), point("a", 2, 0.25), point("a", 3, 0.125), *live])
    run = tmp_path / FOLDER / "a"
    shown = EventAccumulator(str(run))
    shown.Reload()

    tracker = TensorBoard(tmp_path)
    recorded = tracker.begin(TrackedJob(JOB.id, JOB.flow, JOB.name, after_round=2))
    assert recorded["a", "train/loss"] == {1: 0.5, 2: 0.25}
    assert max(recorded["a", f"{LIVE}train/loss"]) == 6
    tracker.write([point("a", 3, 0.0625), point("a", 4, 0.03125)])
    tracker.end("completed")

    expected = [(1, 0.5), (2, 0.25), (3, 0.0625), (4, 0.03125)]
    assert scalars(run) == expected
    assert len(scalars(run, f"{LIVE}train/loss")) == 6
    shown.Reload()  # one that has shown the void round forgets it
    assert [event.step for event in shown.Tensors("train/loss")] == [1, 2, 3, 4]


def test_an_attempt_that_begins_anew_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    written(tmp_path, [point("a", 1, 0.5), point("a", 2, 0.25)])
    tracker = TensorBoard(tmp_path)
    assert not tracker.begin(JOB)
    assert scalars(tmp_path / FOLDER / "a") == []


def test_a_file_that_a_killed_process_has_torn_is_read_up_to_there(tmp_path: Path) -> None:
    written(tmp_path, [point("a", step, 0.5) for step in (1, 2, 3)])
    (file,) = (tmp_path / FOLDER / "a").glob("events*")
    file.write_bytes(file.read_bytes()[:-7])
    tracker = TensorBoard(tmp_path)
    resumed = TrackedJob(JOB.id, JOB.flow, JOB.name, after_round=2)
    assert tracker.begin(resumed) == {("a", "train/loss"): {1: 0.5, 2: 0.5}}
    tracker.write([point("a", 3, 0.25)])
    assert scalars(tmp_path / FOLDER / "a") == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_two_jobs_of_one_name_do_not_mix_and_no_name_leaves_the_folder(tmp_path: Path) -> None:
    written(tmp_path, [point("global", 1, 0.5), point("../../x", 1, 0.5), point(None, 1, 0.25)])
    written(tmp_path, [point("a", 1, 0.5)], TrackedJob("another-job", JOB.flow, JOB.name))
    assert {folder.name for folder in tmp_path.iterdir()} == {FOLDER, f"{FOLDER}-another-"}
    runs = {folder.name for folder in (tmp_path / FOLDER).iterdir() if folder.is_dir()}
    assert runs == {"global", "global-site", "_.._x"}
    assert scalars(tmp_path / FOLDER / "global") == [(1, 0.25)]
    again = TensorBoard(tmp_path).begin(TrackedJob(JOB.id, JOB.flow, JOB.name, after_round=1))
    assert {site for site, _ in again} == {None, "global", "../../x"}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tracker = TensorBoard(tmp_path / "file")
    with pytest.raises(OSError, match="file") as raised:
        tracker.begin(JOB)
    assert f"See that {tmp_path / 'file'} can be written to." in tracker.explain(raised.value)


_WRITES = """
import sys
from pathlib import Path
from prefect_federated.adapters.tensorboard import TensorBoard
from prefect_federated.tracking import MetricPoint, TrackedJob
tracker = TensorBoard(Path(sys.argv[1]))
tracker.begin(TrackedJob("id", "fedavg", "name"))
tracker.write([MetricPoint("a", "train/loss", 0.5, 1, 0.0, 1)])
tracker.begin(TrackedJob("id", "fedavg", "name"))
print([name for name in ("torch", "tensorflow", "prefect", "matplotlib") if name in sys.modules])
"""


def test_neither_torch_nor_tensorflow_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
