"""Statistics of a real federation: over mutual TLS, scheduled, with a site that is away."""

import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.states import Scheduled

from prefect_federated.statistics.schema import Statistics
from prefect_federated.tasks.statistics_result import DRIFT_EVENT, StatisticsRef, reference_in
from tests.integration.running import Running, eventually

ROOT = Path(__file__).parents[2]
HOSPITALS = {"site-1": "cleveland", "site-2": "hungary", "site-3": "va-long-beach"}


@pytest.fixture(scope="module")
def hospitals(
    federation: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Gives the federation's sites the rows of three hospitals; returns site -> its folder."""
    split = runpy.run_path(str(ROOT / "examples" / "heart" / "prepare.py"))["split_by_hospital"]
    made = split(tmp_path_factory.mktemp("heart"))
    folders = {}
    for site, hospital in HOSPITALS.items():
        folders[site] = federation.sandbox.state(site) / "data"
        shutil.copytree(made[hospital], folders[site], dirs_exist_ok=True)
    yield folders
    for folder in folders.values():
        for name in ("heart.csv", "datasets.yaml"):
            (folder / name).unlink()


def run(
    federation: Running,
    at: datetime | None = None,
    deployment: str = "statistics/default",
    **parameters: object,
) -> FlowRun:
    """Runs a deployment with the heart data, and returns its flow run once it has ended."""
    federation.wait_until_idle()
    started = federation.client.create_flow_run_from_deployment(
        federation.client.read_deployment_by_name(deployment).id,
        parameters={"dataset": "heart", **parameters},
        state=Scheduled(scheduled_time=at),
    )

    return ended(federation, started.id)


def ended(federation: Running, started: UUID) -> FlowRun:
    """Returns a flow run once it has ended."""

    def seen() -> FlowRun | None:
        now = federation.client.read_flow_run(started)
        return now if now.state is not None and now.state.is_final() else None

    return eventually(seen, "the run ends")


def read(run: FlowRun) -> tuple[StatisticsRef, Statistics]:
    assert run.state is not None
    assert run.state.type == StateType.COMPLETED, run.state.message
    reference = reference_in(run.state.result())
    assert reference is not None
    return reference, Statistics.model_validate_json(Path(reference.path).read_text())


def test_a_scheduled_run_reports_with_a_site_that_is_away_and_drift_starts_an_automation(
    federation: Running, hospitals: dict[str, Path]
) -> None:
    client = federation.client
    wanted: dict[str, Any] = {"name": "every night", "features": ["age", "sex", "chol"]}
    at = datetime.now(UTC) + timedelta(seconds=2)
    reference, result = read(run(federation, at, **wanted))
    assert {state.state for state in result.sites.values()} == {"answered"}
    rows = [pd.read_csv(folder / "heart.csv")["age"] for folder in hospitals.values()]
    age = result.splits["all"].features["age"].overall
    assert age.mean == pytest.approx(pd.concat(rows).mean(), rel=1e-12)
    assert age.variance == pytest.approx(pd.concat(rows).var(), rel=1e-12)
    assert Path(reference.report).read_text().startswith("<!")

    older = pd.read_csv(hospitals["site-1"] / "heart.csv")
    older["age"] += 12
    older.to_csv(hospitals["site-1"] / "heart.csv", index=False)
    deployment = client.read_deployment_by_name("fedavg/default")
    automation = client.create_automation(
        AutomationCore(
            name="train again when the data drift",
            trigger=EventTrigger(
                expect={DRIFT_EVENT},
                match={"prefect.resource.id": "federated.statistics.every night"},
                match_related={"prefect.resource.id": "federated.site.site-1"},
                posture="Reactive",
                threshold=1,
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=deployment.id,
                    parameters={"executor": "scripted"},
                    schedule_after=timedelta(days=1),  # so that it does not run here
                )
            ],
        )
    )
    client.update_work_pool("site-3", WorkPoolUpdate(is_paused=True))  # its worker gets no runs
    try:
        second = run(federation, absent_after_s=3, **wanted)
        started = eventually(lambda: later_runs(federation, deployment.id), "the automation reacts")
    finally:
        client.update_work_pool("site-3", WorkPoolUpdate(is_paused=False))
        client.delete_automation(automation)
    for each in started:
        client.delete_flow_run(each.id)
    reference, result = read(second)
    assert result.sites["site-3"].state == "absent"
    assert "had not joined within 3 s" in result.sites["site-3"].reason
    assert second.state is not None
    assert "absent: site-3" in str(second.state.message)
    assert set(result.splits["all"].features["age"].by_site) == {"site-1", "site-2"}
    assert result.compared is not None
    past = {(d.site, d.feature) for d in result.compared.drifts if d.is_past_threshold}
    assert ("site-1", "age") in past
    assert reference.drifted == len(past)


def later_runs(federation: Running, deployment: UUID) -> list[FlowRun]:
    return federation.client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"]))
        ),
    )


def test_an_unknown_dataset_is_said_once_with_each_sites_reason(
    federation: Running, hospitals: dict[str, Path]
) -> None:
    failed = run(federation, dataset="hart", absent_after_s=5)
    assert failed.state is not None
    assert failed.state.type == StateType.FAILED
    assert failed.run_count == 1  # another attempt would help nobody
    assert "site-1, site-2, site-3: failed, DatasetNotFound" in str(failed.state.message)
    assert str(failed.state.message).count("Did you mean 'heart'") == 1


def documented_registration() -> list[str]:
    """Returns the arguments of `prefect` with which the page registers the nightly deployment."""
    page = (ROOT / "docs" / "statistics.md").read_text()
    (line,) = [line for line in page.splitlines() if "-- prefect --no-prompt deploy" in line]
    return shlex.split(line.partition("-- prefect ")[2])


def test_the_nightly_deployment_is_registered_turned_off_and_can_be_turned_on(
    federation: Running, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "deployments" / "prefect.yaml", tmp_path)
    command = federation.command(*documented_registration())
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=tmp_path)
    client = federation.client
    deployment = client.read_deployment_by_name("statistics/nightly")
    try:
        (schedule,) = deployment.schedules
        assert not schedule.active
        resume = ["deployment", "schedule", "resume", "statistics/nightly", str(schedule.id)]
        subprocess.run(federation.command(*resume), check=True, capture_output=True, timeout=120)
        (schedule,) = client.read_deployment_by_name("statistics/nightly").schedules
        assert schedule.active
        at_night = eventually(lambda: later_runs(federation, deployment.id), "cron makes runs")
        tonight = min(at_night, key=lambda each: str(each.expected_start_time))
        assert tonight.auto_scheduled
        assert tonight.expected_start_time is not None
        local = tonight.expected_start_time.astimezone(ZoneInfo("Europe/Zurich"))
        assert (local.hour, local.minute) == (2, 0)
        federation.wait_until_idle()
        client.set_flow_run_state(tonight.id, Scheduled(), force=True)  # the night is now
        reference, _ = read(ended(federation, tonight.id))
    finally:
        client.delete_deployment(deployment.id)
    page = (ROOT / "docs" / "statistics.md").read_text()
    automation = yaml.safe_load(page[page.index("```yaml") + 7 :].split("```")[0])["automations"][0]
    matched = automation["trigger"]["match"]["prefect.resource.id"]
    assert matched == f"federated.statistics.{reference.name}"
