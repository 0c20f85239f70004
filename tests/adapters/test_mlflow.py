"""MLflow with its SQLite store in a folder of the test's."""

import math
import os
from collections.abc import Callable, Iterator

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from prefect_federated.adapters.mlflow import JOB_TAG, SITE_TAG, MLflow, metric_name
from prefect_federated.tracking import LIVE, MetricPoint, TrackedJob

JOB = TrackedJob(
    "5ffa9aa3-ef80-48ad-984c-cd4cf07e24f3",
    "fedavg",
    "tall-cricket",
    {"rounds": 3, "config": {"lr": 0.1, "deep": {"er": [1, 2]}}, "long": "x" * 9000, "none": None},
)


def point(site: str | None, step: int, value: float, name: str = "train/loss") -> MetricPoint:
    return MetricPoint(site, name, value, step, 1_700_000_000.0 + step, step)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Returns the tracking URI of a store; making its tables takes seconds."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("mlflow")
    where = os.getcwd()
    os.chdir(folder)  # MLflow may make `mlruns` where it is
    yield f"sqlite:///{folder / 'mlflow.db'}"
    os.chdir(where)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def runs(uri: str) -> Callable[[str], dict[str | None, Run]]:
    """Finds a job's runs by site; None is the job's own."""
    client = MlflowClient(tracking_uri=uri)

    def find(job: str) -> dict[str | None, Run]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(experiments, f"tags.`{JOB_TAG}` = '{job}'")
        by_site = {run.data.tags.get(SITE_TAG): run for run in found}
        assert len(by_site) == len(found)
        return by_site

    return find


def history(uri: str, run: Run, key: str = "train/loss") -> list[tuple[int, float]]:
    metrics = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in metrics)


def test_a_job_is_a_run_with_its_parameters_and_a_nested_run_a_site(
    uri: str, runs: Callable[[str], dict[str | None, Run]]
) -> None:
    tracker = MLflow(uri)
    assert tracker.begin(JOB) == {}
    tracker.write([point("a", 1, 0.5), point("b", 1, 0.75), point(None, 1, 0.625)])
    tracker.write([point("a", 2, 0.25)])
    found = runs(JOB.id)
    assert found.keys() == {None, "a", "b"}
    job = found[None]
    assert {run.info.status for run in found.values()} == {"RUNNING"}
    assert (job.info.run_name, found["a"].info.run_name) == ("tall-cricket", "a")
    assert found["b"].data.tags["mlflow.parentRunId"] == job.info.run_id
    parameters = job.data.params
    assert parameters["rounds"] == "3"
    assert (parameters["config.lr"], parameters["config.deep.er"]) == ("0.1", "[1, 2]")
    assert len(parameters["long"]) == 6000
    assert history(uri, found["a"]) == [(1, 0.5), (2, 0.25)]
    assert history(uri, job) == [(1, 0.625)]
    experiment = MlflowClient(tracking_uri=uri).get_experiment(job.info.experiment_id)
    assert experiment.name == "fedavg"
    tracker.end("completed")
    assert {run.info.status for run in runs(JOB.id).values()} == {"FINISHED"}


def test_a_controller_that_is_restarted_goes_on_in_the_same_runs(
    uri: str, runs: Callable[[str], dict[str | None, Run]]
) -> None:
    job = TrackedJob("a-job-that-resumes", "fedavg", "name", {"rounds": 2})
    first = MLflow(uri)
    first.begin(job)
    first.write([point("a", 1, 0.5), point("a", 1, 0.75, f"{LIVE}train/loss")])
    before = {site: run.info.run_id for site, run in runs(job.id).items()}
    first.end("failed")
    assert {run.info.status for run in runs(job.id).values()} == {"FAILED"}

    second = MLflow(uri)
    recorded = second.begin(job)
    assert recorded == {("a", "train/loss"): {1: 0.5}, ("a", f"{LIVE}train/loss"): {1: 0.75}}
    assert runs(job.id)[None].info.status == "RUNNING"
    second.write([point("a", 2, 0.25)])
    second.end("unfinished")
    found = runs(job.id)
    assert {site: run.info.run_id for site, run in found.items()} == before
    assert history(uri, found["a"]) == [(1, 0.5), (2, 0.25)]
    assert found["a"].info.status == "RUNNING"
    second.end("cancelled")
    assert runs(job.id)["a"].info.status == "KILLED"


def test_the_same_points_again_change_nothing(
    uri: str, runs: Callable[[str], dict[str | None, Run]]
) -> None:
    tracker = MLflow(uri)
    tracker.begin(TrackedJob("again", "fedavg", "name"))
    points = [point("a", step, 0.5) for step in range(1, 2501)]  # more than a batch
    tracker.write(points)
    tracker.write(points)
    assert len(history(uri, runs("again")["a"])) == 2500


def test_values_that_are_not_finite_and_strange_names_are_taken(
    uri: str, runs: Callable[[str], dict[str | None, Run]]
) -> None:
    tracker = MLflow(uri, experiment="other")
    tracker.begin(TrackedJob("odd", "fedavg", "name"))
    values = [math.nan, math.inf, -math.inf]
    tracker.write([point("a", step, value) for step, value in enumerate(values)])
    names = ["/x", "../x", "a//b", "f1 (macro)", "größe", "x" * 400, "", "."]
    tracker.write([point("a", 1, 0.5, name) for name in names])
    run = runs("odd")["a"]
    nan, positive, negative = (value for _, value in history(uri, run))
    assert math.isnan(nan)
    assert positive > 1e308  # the SQL stores keep the largest number for infinity
    assert negative < -1e308
    assert {metric_name(name) for name in names} <= run.data.metrics.keys()


def test_a_password_is_in_no_message() -> None:
    tracker = MLflow("http://ann:s3cret@127.0.0.1:9/")
    assert tracker.name == "MLflow (http://***@127.0.0.1:9/)"
    with pytest.raises(Exception, match=r".") as raised:  # nobody listens there
        tracker.begin(JOB)
    said = tracker.explain(raised.value)
    assert "s3cret" not in said
    assert "MLFLOW_TRACKING_URI" in said
    told = tracker.explain(OSError("http://ann:s3cret@127.0.0.1:9/api is gone\ns3cret"))
    assert told.startswith("OSError: http://***@127.0.0.1:9/api is gone. See that it runs")
