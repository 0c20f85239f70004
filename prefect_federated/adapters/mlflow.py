"""A job's metrics in MLflow. Installed with the extra `mlflow`.

One MLflow run is the job, with its parameters and the means over the sites; one nested run a site.
They are found again by tags when the job's controller is restarted.
"""

import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from prefect_federated.messages import JsonValue
from prefect_federated.tracking import (
    MetricPoint,
    Outcome,
    Recorded,
    Series,
    TrackedJob,
    without_credentials,
)

JOB_TAG = "federated.job"
"""The job's flow run id."""
SITE_TAG = "federated.site"
"""The site's name, at its nested run."""

_METRICS_A_BATCH = 1000  # MLflow's own limits
_PARAMS_A_BATCH = 100
_STATUS: Mapping[Outcome, str] = {
    "completed": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
}
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a federation reports to nobody
}


class MLflow:
    """Records a job's metrics where a tracking URI says.

    Args:
        uri: MLflow's tracking URI; may hold a password, which is never logged.
        experiment: The experiment; the flow's name if None.
    """

    def __init__(self, uri: str, experiment: str | None = None) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self._uri = uri
        self._experiment_name = experiment
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._job = TrackedJob("", "", "")
        self._runs: dict[str | None, str] = {}

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"MLflow ({without_credentials(self._uri, self._uri)})"

    def begin(self, job: TrackedJob) -> Recorded:
        """Opens the job's run, and finds those of an earlier attempt; returns what they hold.

        Raises:
            MlflowException: MLflow cannot be reached, or refuses.
        """
        client = self._client = MlflowClient(tracking_uri=self._uri)
        self._job = job
        self._experiment = self._find_experiment(client, self._experiment_name or job.flow)
        self._runs = {}
        has_parameters = False
        recorded: dict[Series, dict[int, float]] = {}
        for run in client.search_runs(
            [self._experiment], f"tags.`{JOB_TAG}` = '{job.id}'", max_results=1000
        ):
            site = run.data.tags.get(SITE_TAG)
            self._runs[site] = run.info.run_id
            has_parameters |= bool(run.data.params)
            client.update_run(run.info.run_id, status="RUNNING")
            for key in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, key)
                recorded[site, key] = {metric.step: metric.value for metric in history}
        run_id = self._run(None)
        if not has_parameters:
            self._log_parameters(client, run_id)
        return recorded

    def write(self, points: Sequence[MetricPoint]) -> None:
        """Records points, in as few requests as MLflow lets.

        Raises:
            MlflowException: MLflow cannot be reached, or refuses.
            ValueError: it will never take them.
        """
        metrics: dict[str | None, list[Metric]] = defaultdict(list)
        for point in points:
            time_ms = int(point.time_s * 1000)
            metrics[point.site].append(
                Metric(metric_name(point.name), point.value, time_ms, point.step or 0)
            )
        for site, those in metrics.items():
            run = self._run(site)
            for begin in range(0, len(those), _METRICS_A_BATCH):
                batch = those[begin : begin + _METRICS_A_BATCH]
                try:
                    self._connected.log_batch(run, metrics=batch)
                except MlflowException as error:
                    if error.error_code == "INVALID_PARAMETER_VALUE":
                        raise ValueError(str(error)) from error
                    raise

    def end(self, outcome: Outcome) -> None:
        """Says how the runs ended, unless they go on later.

        Raises:
            MlflowException: MLflow cannot be reached.
        """
        if outcome in _STATUS:
            for run in self._runs.values():
                self._connected.set_terminated(run, status=_STATUS[outcome])

    def explain(self, error: Exception) -> str:
        """Returns why it failed, without credentials, and what to do."""
        lines = str(error).splitlines() or [""]
        why = without_credentials(f"{type(error).__name__}: {lines[0][:300]}", self._uri)
        return f"{why.rstrip('.')}. See that it runs, and that MLFLOW_TRACKING_URI is right."

    @property
    def _connected(self) -> MlflowClient:
        assert self._client is not None  # `begin` comes first
        return self._client

    def _run(self, site: str | None) -> str:
        """Returns the id of a site's run, or of the job's; makes it if there is none."""
        if site not in self._runs:
            tags = {JOB_TAG: self._job.id, "mlflow.source.name": self._job.flow}
            if site is not None:
                tags |= {SITE_TAG: site, "mlflow.parentRunId": self._runs[None]}
            made = self._connected.create_run(
                self._experiment, tags=tags, run_name=site or self._job.name
            )
            self._runs[site] = made.info.run_id
        return self._runs[site]

    def _log_parameters(self, client: MlflowClient, run: str) -> None:
        params = [
            Param(metric_name(name), text[:6000])
            for name, text in flat(self._job.parameters).items()
        ]
        for begin in range(0, len(params), _PARAMS_A_BATCH):
            client.log_batch(run, params=params[begin : begin + _PARAMS_A_BATCH])

    @staticmethod
    def _find_experiment(client: MlflowClient, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another job has been quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)


def metric_name(name: str) -> str:
    """Returns a name that MLflow takes: letters, digits, `_-. :/`, at most 250, no path's tricks.

    >>> metric_name("train/f1 (macro)")
    'train/f1 _macro_'
    """
    plain = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).lstrip("/")
    path = posixpath.normpath(plain).replace("..", "_")
    return "_" if path == "." else path[:250].rstrip("/")


def flat(parameters: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    """Returns parameters as MLflow has them: one level, text.

    >>> flat({"rounds": 3, "config": {"lr": 0.1}, "sites": ["a"]})
    {'rounds': '3', 'config.lr': '0.1', 'sites': '["a"]'}
    """
    texts: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            texts |= flat(value, f"{prefix}{name}.")
        else:
            texts[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return texts
