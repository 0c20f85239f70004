"""What trackers get of a job, and that they neither delay nor end it."""

import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prefect import flow
from prefect.exceptions import Abort, Pause
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from prefect_federated import simulate
from prefect_federated.errors import ConfigurationError, StaleController
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from prefect_federated.tasks import tracker_feed, tracking
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.tasks.tracking import Tracking, outcome_of, wanted
from prefect_federated.tracking import MetricPoint, Outcome, Recorded, TrackedJob
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Moment
from tests.agents.network import eventually

Detail = dict[str, JsonValue]

EXECUTOR = "tests.tasks.streaming_executor"

pytestmark = pytest.mark.usefixtures("prefect_api")


@dataclass
class Records:
    """A tracker of the tests'."""

    name: str = "the records"
    job: TrackedJob | None = None
    points: list[MetricPoint] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    recorded: Recorded = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    gate: threading.Event | None = None

    def begin(self, job: TrackedJob) -> Recorded:
        self.job = job
        return self.recorded

    def write(self, points: Sequence[MetricPoint]) -> None:
        if self.gate is not None:
            self.gate.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        self.points += points

    def end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def explain(self, error: Exception) -> str:
        return f"{error}. Mend it."

    def values(self) -> dict[tuple[str | None, str], list[tuple[int | None, float]]]:
        found: dict[tuple[str | None, str], list[tuple[int | None, float]]] = {}
        for point in self.points:
            found.setdefault(point.series, []).append((point.step, round(point.value, 4)))
        return found


def report(round: int, kind: str = "train", **metrics: float) -> RoundReport:
    return RoundReport(kind, round, 0.0, 2, 2, 0.1, 1, 1, metrics)


def track(records: Records, *, ends: BaseException | None = None, after: int | None = None) -> Hub:
    """Tells a job of two rounds to a tracker, as a hub and a flow would; returns the hub."""
    hub = Hub("job", 1, ("a", "b"))

    @flow(name="some_flow")
    def job() -> None:
        with Tracking({"rounds": 2}, [lambda: records]) as tracked:
            tracked.listen_to(hub)
            if after is not None:
                tracked.resume(after)
            for number in (1, 2):
                for step in (1, 2):
                    live: Detail = {
                        "kind": "train",
                        "metrics": {"loss": "nan"},
                        "step": step,
                        "time": 5.0,
                    }
                    tell(hub, Moment("metrics_logged", "a", number, live))
                answer: Detail = {"kind": "train", "metrics": {"loss": 0.5 / number}}
                tell(hub, Moment("update_received", "a", number, answer))
                tracked.round_done(report(number, loss=0.25))
            tell(hub, Moment("site_lost", "a", 2, {"reason": "gone"}))
            tell(hub, Moment("update_received", "a", 0, {"kind": "evaluate", "metrics": {"f": 1}}))
            if ends is not None:
                raise ends

    if ends is None:
        job()
    else:
        with pytest.raises(type(ends)):
            job()
    return hub


def tell(hub: Hub, moment: Moment) -> None:
    for listener in hub.listeners:
        listener(moment)


def test_a_tracker_gets_what_sites_say_and_answer_and_the_means() -> None:
    records = Records()
    track(records)
    values = records.values()
    live = values.pop(("a", "live/train/loss"))
    assert [step for step, _ in live] == [1, 2, 3, 4]
    assert all(math.isnan(value) for _, value in live)
    assert values == {
        ("a", "train/loss"): [(1, 0.5), (2, 0.25)],
        (None, "train/loss"): [(1, 0.25), (2, 0.25)],
        ("a", "evaluate/f"): [(2, 1.0)],
    }
    assert records.points[0].time_s == 5.0
    assert records.job is not None
    assert (records.job.flow, records.job.after_round) == ("some-flow", 0)
    assert records.job.parameters == {"rounds": 2}
    assert records.outcomes == ["completed"]


def test_a_job_that_goes_on_says_after_which_round_and_records_nothing_twice() -> None:
    records = Records(recorded={("a", "train/loss"): {1: 0.5}, ("a", "live/train/loss"): {8: 0.1}})
    track(records, after=1)
    assert records.job is not None
    assert records.job.after_round == 1
    values = records.values()
    assert values["a", "train/loss"] == [(2, 0.25)]
    assert [step for step, _ in values["a", "live/train/loss"]] == [9, 10, 11, 12]


@pytest.mark.parametrize(
    ("ends", "outcome"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "cancelled")]
)
def test_a_tracker_is_told_how_the_job_ended(ends: BaseException, outcome: Outcome) -> None:
    records = Records()
    track(records, ends=ends)
    assert records.outcomes == [outcome]


def test_a_job_that_goes_on_elsewhere_or_later_is_not_ended() -> None:
    assert outcome_of(None) == "completed"
    assert outcome_of(StaleController("attempt 2")) == "unfinished"
    assert outcome_of(Pause("person")) == "unfinished"
    aborted = Abort("ends")
    aborted.__cause__ = ValueError("x")
    assert outcome_of(aborted) == "failed"


def test_a_tracker_that_fails_is_told_of_once_and_gets_all_when_it_works_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_feed, "_RETRY_S", 0.01)
    monkeypatch.setattr(tracker_feed, "_GATHER_S", 0.01)
    records = Records(failures=[OSError("disk full"), OSError("disk full"), OSError("disk full")])
    with caplog.at_level(logging.INFO):
        track_slowly(records)
    assert [step for step, _ in records.values()[None, "train/loss"]] == [1, 2]
    assert records.outcomes == ["completed"]
    told = [record.getMessage() for record in caplog.records if "metrics" in record.getMessage()]
    assert told == [
        "the records takes no metrics: disk full. Mend it. The job goes on, and tries it again "
        "every 0.01 s.",
        "the records takes metrics again; 0 values were lost",
    ]


def track_slowly(records: Records) -> None:
    """Tells a tracker of a round, waits until it has it, and tells it of another."""

    @flow
    def job() -> None:
        with Tracking({}, [lambda: records]) as tracked:
            tracked.round_done(report(1, loss=0.5))
            eventually(lambda: records.points, "the first round is recorded")
            tracked.round_done(report(2, loss=0.25))

    job()


def test_points_that_are_never_taken_do_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker_feed, "_RETRY_S", 0.01)
    records = Records(failures=[ValueError("no such name")])

    @flow
    def job() -> None:
        with Tracking({}, [lambda: records]) as tracked:
            tracked.round_done(report(1, loss=0.5))
            eventually(lambda: not records.failures, "the first round is refused")
            tracked.round_done(report(2, loss=0.25))

    job()
    assert records.values() == {(None, "train/loss"): [(2, 0.25)]}


def test_a_tracker_that_cannot_be_made_ends_no_job(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Records:
        raise ImportError("no module of that name")

    @flow
    def job() -> str:
        with Tracking({}, [make]) as tracked:
            tracked.round_done(report(1, loss=0.5))
        return "done"

    assert job() == "done"
    assert "ImportError: no module of that name" in caplog.text


def test_a_tracker_that_hangs_delays_no_round_and_the_end_only_so_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_END_S", {"completed": 0.2})
    monkeypatch.setattr(tracker_feed, "_WAITING", 100)
    records = Records(gate=threading.Event())
    took: list[float] = []

    @flow
    def job() -> None:
        with Tracking({}, [lambda: records]) as tracked:
            began = time.monotonic()
            for number in range(1, 1001):
                tracked.round_done(report(number, loss=0.5))
            took.append(time.monotonic() - began)
        took.append(time.monotonic() - began)

    job()
    assert records.gate is not None
    records.gate.set()
    assert took[0] < 1
    assert took[1] < 5
    assert "the records is too slow: the job ends without the last metrics" in caplog.text
    assert len(records.points) <= 1000


def test_of_very_many_sites_the_first_are_followed() -> None:
    records = Records()
    hub = Hub("job", 1, ("a",))

    @flow
    def job() -> None:
        with Tracking({}, [lambda: records]) as tracked:
            tracked.listen_to(hub)
            for number in range(200):
                answer: Detail = {"kind": "train", "metrics": {"loss": 0.5}}
                tell(hub, Moment("update_received", f"site-{number}", 1, answer))

    job()
    assert len({point.site for point in records.points}) == 64


def test_without_trackers_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert wanted(None, pytest.fail) == []
    hub = Hub("job", 1, ("a",))

    @flow
    def job() -> None:
        with Tracking({}, []) as tracked:
            tracked.listen_to(hub)

    job()
    assert hub.listeners == []


def test_a_tracker_that_is_asked_for_and_not_installed_is_a_warning_in_a_job_and_an_error_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@host")
    told: list[str] = []
    assert wanted(tmp_path, told.append) == []
    assert f"folder {tmp_path} asks for tensorboard" in told[0]
    assert "MLFLOW_TRACKING_URI asks for mlflow" in told[1]
    assert "pip install 'prefect-federated[mlflow]'" in told[1]
    assert "s3cret" not in "".join(told)
    with pytest.raises(ConfigurationError, match="--tensorboard asks for tensorboard"):
        simulate(fedavg, tensorboard=tmp_path, parameters={"executor": EXECUTOR})


def test_a_simulated_job_streams_to_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    simulate(
        fedavg,
        sites=["a", "b"],
        tensorboard=tmp_path / "board",
        parameters={"executor": EXECUTOR, "rounds": 2},
    )
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "board")).Reload()
    (folder,) = {run.rpartition("/")[0] for run in shown.Runs()}
    assert folder.startswith("fedavg-")
    assert {run.rpartition("/")[2] for run in shown.Runs()} == {"a", "b", "global"}

    def steps(run: str, tag: str) -> list[int]:
        return [event.step for event in shown.Tensors(f"{folder}/{run}", tag)]

    assert steps("a", "live/train/loss") == [1, 2, 3, 4]
    assert steps("global", "train/val_loss") == steps("b", "train/val_loss") == [1, 2]
    assert steps("global", "evaluate/loss") == [2]
    live = shown.Tensors(f"{folder}/b", "live/train/loss")
    assert all(math.isnan(event.tensor_proto.float_val[0]) for event in live)
    assert json.loads((tmp_path / "board" / folder / "job.json").read_text())["job"]


def test_a_job_is_in_mlflow_when_its_variable_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hospitals")

    @flow
    def job() -> None:
        with Tracking({"rounds": 1}, wanted(None, pytest.fail)) as tracked:
            tracked.round_done(report(1, loss=0.5))

    monkeypatch.setattr(tracking, "_END_S", {"completed": 120.0})  # it makes its database first
    job()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("hospitals")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params) == ("FINISHED", {"rounds": "1"})
    assert run.data.metrics == {"train/loss": 0.5}
