"""Agents that stop, die, start again or come late, in the middle of a job.

The tests share a federation; each leaves it running with `site-1` and `site-2`. The site `late` was
there once, so it is known; `manual` has a kit and was never there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import StateType, WorkPoolStatus

from prefect_federated.agents.sandbox import create_sandbox, start_sandbox
from tests.integration.running import EXECUTORS, Running, attended, eventually

TWO = ["site-1", "site-2"]
THREE = [*TWO, "late"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Runs a federation of which only two sites are started."""
    folder = tmp_path_factory.mktemp("restarts")
    sandbox = create_sandbox(folder / "sandbox", [*THREE, "manual"])
    try:
        sandbox.start_server()
        for site in THREE:
            sandbox.start_site(site, code=[EXECUTORS])
        sandbox.wait_until_ready(THREE)
        with attended(sandbox, folder) as federation:
            federation.end("late", signal.SIGTERM)
            yield federation
    finally:
        sandbox.stop()


def registered(federation: Running) -> list[str]:
    """Returns all work pools and deployments, as the server knows them."""
    pools = federation.client.read_work_pools()
    deployments = federation.client.read_deployments()
    return sorted([*(pool.name for pool in pools), *(f"{d.flow_id}/{d.name}" for d in deployments)])


def test_a_server_restart_and_a_site_that_comes_late_do_not_disturb_a_job(
    federation: Running,
) -> None:
    script = {"2": "wait at the gate", "4": "wait at the gate"}
    job = federation.submit(rounds=6, script=script, sites=THREE, min_sites=2)
    job.wait_for_round(2, sites=2)
    agents, before = {site: federation.pid(site) for site in TWO}, registered(federation)
    federation.end("server", signal.SIGTERM)
    federation.sandbox.start_site("late", code=[EXECUTORS])
    federation.sandbox.start_server()
    job.open_gate(2)
    job.wait_for_round(4, sites=2)
    eventually(lambda: "late" in federation.text_of_logs(job.run_id), "the site joins")
    job.open_gate(4)
    job.wait()
    late = {call.round for call in job.calls() if call.site == "late"}
    assert late >= {5, 6}
    assert 1 not in late
    job.check_counted_once(absent={round: ["late"] for round in {1, 2, 3, 4} - late})
    job.wait_for_site_runs(StateType.COMPLETED)
    assert {site: federation.pid(site) for site in TWO} == agents
    assert len({call.pid for call in job.calls()}) == 3, "a site's process was started again"
    assert registered(federation) == before
    federation.end("late", signal.SIGTERM)


def test_a_killed_server_leaves_nothing_running_and_its_job_goes_on_when_it_is_back(
    federation: Running,
) -> None:
    job = federation.submit(rounds=3, script={"2": "wait at the gate"}, sites=TWO)
    before = {call.site: call.pid for call in job.wait_for_round(2)}
    began = time.monotonic()
    federation.end("server", signal.SIGKILL)
    print(f"server killed: the last of its processes ended after {time.monotonic() - began:.1f} s")
    federation.sandbox.start_server()
    job.open_gate(2)
    job.wait()
    job.check_counted_once()
    assert {call.site: call.pid for call in job.calls()} == before
    job.wait_for_site_runs(StateType.COMPLETED)


def test_a_killed_site_agent_that_is_started_again_takes_its_jobs_up_again(
    federation: Running,
) -> None:
    job = federation.submit(rounds=3, script={"site-2 2": "wait at the gate"}, sites=TWO, quorum=1)
    job.wait_for_round(2)
    federation.end("site-2", signal.SIGKILL)
    job.open_gate(2)
    federation.sandbox.start_site("site-2", code=[EXECUTORS])
    job.wait()
    job.check_counted_once()
    runs = job.wait_for_site_runs(StateType.COMPLETED)
    assert {site: run.run_count for site, run in runs.items()} == {"site-1": 1, "site-2": 2}
    assert "is gone" in federation.sandbox.log("site-2").read_text()


def test_an_ordinary_prefect_worker_of_the_registered_type_serves_a_site(
    federation: Running, tmp_path: Path
) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(EXECUTORS),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FEDERATED_KIT": str(federation.sandbox.kit_folder("manual")),
        "PREFECT_FEDERATED_DATA": str(data),
        "PREFECT_FEDERATED_STATE": str(state),
    }
    worker = ["worker", "start", "--pool", "manual", "--type", "federated-site"]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            federation.command(*worker, kit="manual"), env=environment, stdout=log, stderr=log
        )
    try:
        eventually(
            lambda: any(
                pool.name == "manual" and pool.status == WorkPoolStatus.READY
                for pool in federation.client.read_work_pools()
            ),
            "the worker polls",
        )
        job = federation.submit(sites=["manual"])
        job.wait()
        job.check_counted_once()
    finally:
        process.terminate()
        process.wait(120)  # a bound: it lets its job's process end first
    said = (tmp_path / "worker.log").read_text()
    assert "Traceback" not in said


def test_stopping_a_sandbox_ends_what_it_started_and_nothing_else(federation: Running) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        started = federation.processes()
        assert len(started) > 5
        assert federation.sandbox.stop() == []
        assert not psutil.wait_procs(started, timeout=0)[1]
        assert not federation.sandbox.is_running
        assert bystander.poll() is None
        assert federation.sandbox.stop() == []
    finally:
        bystander.kill()
        bystander.wait()


def test_a_sandbox_starts_again_in_the_same_folder_with_postgresql_by_setting(
    federation: Running, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", postgresql)
    folder = federation.sandbox.folder
    sandbox = start_sandbox(folder, ["site-1"], code=[EXECUTORS])
    try:
        assert not (sandbox.state("server") / "prefect.db").exists()
        with attended(sandbox, folder.parent) as again:
            job = again.submit()
            job.wait()
            job.check_counted_once()
            job.wait_for_site_runs(StateType.COMPLETED)
    finally:
        assert sandbox.stop() == []
