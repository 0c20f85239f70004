"""Jobs on a running federation whose agents nobody touches."""

import hashlib
import json
import subprocess
import time
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.objects import StateType

from tests.integration.running import PATIENCE_S, Running, eventually


def connect(federation: Running, *command: str) -> str:
    """Runs a command of Prefect as a user does, and returns what it prints."""
    ended = subprocess.run(
        federation.command(*command), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_job_started_by_the_prefect_command_trains_a_model_that_anyone_finds(
    federation: Running,
) -> None:
    parameters = federation.parameters(rounds=3)
    told = connect(
        federation, "deployment", "run", "fedavg/default", "--params", json.dumps(parameters)
    )
    run_id = next(word for word in told.split() if len(word) == 36 and word.count("-") == 4)
    job = federation.job(UUID(run_id), parameters)
    job.wait()

    reference = job.reference()
    assert hashlib.sha256(Path(reference.path).read_bytes()).hexdigest() == reference.sha256
    job.check_counted_once()
    assert [row["sites"] for row in reference.history] == ["1/1", "3/3", "3/3", "3/3"]
    rounds = {f"round {n} · train · {site}" for n in (1, 2, 3) for site in job.sites}
    assert rounds <= {task_run.name for task_run in job.task_runs()}
    artifacts = job.artifacts()
    assert artifacts["fedavg-progress"].data == 100.0
    assert '"round": 3' in str(artifacts["fedavg-rounds"].data)
    assert reference.sha256 in str(artifacts["fedavg-model"].description)
    assert "data:image/png;base64," in str(artifacts["fedavg-curves"].data)
    job.wait_for_site_runs(StateType.COMPLETED)
    federation.wait_until_idle()


def test_cancelling_a_job_ends_its_sites_within_ten_seconds(federation: Running) -> None:
    job = federation.submit(script={"1": "wait at the gate"})
    job.wait_for_round(1)
    assert len(federation.forks()) == 4
    connect(federation, "flow-run", "cancel", str(job.run_id))
    began = time.monotonic()
    federation.wait_until_idle()
    seconds = time.monotonic() - began
    print(f"cancelled: no process left after {seconds:.1f} s")
    assert seconds < 10
    assert job.wait().state_type == StateType.CANCELLED
    job.wait_for_site_runs(StateType.CANCELLED)


def test_a_site_whose_update_is_no_good_is_left_out_of_its_round_and_told_why(
    federation: Running,
) -> None:
    job = federation.submit(
        rounds=4,
        quorum=0.6,
        script={
            "site-2 2": "raise",
            "site-1 3": "answer in another shape",
            "site-3 4": "answer with NaN",
        },
    )
    job.wait()
    job.check_counted_once(absent={2: ["site-2"], 3: ["site-1"], 4: ["site-3"]})
    raised, misshapen, infinite = (str(row["failures"]) for row in job.reference().history[2:])
    assert raised == "site-2: ValueError: the scanner is off"
    assert "site-1: " in misshapen
    assert "'counted' is F64 (4, 1), the global model has F64 (4, 3)" in misshapen
    assert "site-3: " in infinite
    assert "'counted' holds NaN" in infinite
    failed = {
        task_run.name: task_run.state.message
        for task_run in job.task_runs()
        if task_run.state is not None and task_run.state.is_failed()
    }
    assert set(failed) == {
        "round 2 · train · site-2", "round 3 · train · site-1", "round 4 · train · site-3"
    }  # fmt: skip
    assert failed["round 2 · train · site-2"] == raised

    at_site = federation.sandbox.log("site-2").read_text()
    assert "Traceback" in at_site
    assert "patient 4711" in at_site
    runs = job.wait_for_site_runs(StateType.COMPLETED)
    at_server = federation.sandbox.log("server").read_text()
    sent = at_server + "".join(
        federation.text_of_logs(run_id) for run_id in [job.run_id, *(r.id for r in runs.values())]
    )
    assert "the scanner is off" in sent
    assert "patient 4711" not in sent
    assert "scripted.py" not in sent


def test_an_executor_that_does_not_import_fails_the_job_at_once_with_what_to_do(
    federation: Running,
) -> None:
    began = time.monotonic()
    job = federation.submit(executor="hospital_x.heart")
    run = job.wait()
    assert time.monotonic() - began < 60  # the join timeout is 120
    assert run.state is not None
    assert run.state_type == StateType.FAILED
    assert run.run_count == 1
    message = str(run.state.message)
    for words in ("site-1", "ExecutorNotFound", "import hospital_x.heart", "--code"):
        assert words in message, message
    federation.wait_until_idle()
    # The job ends with the first site that fails; one that was slower to start is cancelled.
    ends = {StateType.FAILED, StateType.CANCELLED}
    eventually(
        lambda: {run.state_type for run in job.site_runs().values()} <= ends, "the sites' runs end"
    )
    assert StateType.FAILED in {run.state_type for run in job.site_runs().values()}


def test_a_job_for_sites_that_do_not_exist_fails_at_once(federation: Running) -> None:
    too_many = federation.submit(min_sites=9)
    unknown = federation.submit(sites=["site-1", "atlantis"])
    for job, words in (
        (too_many, "the job asks for 9 sites; there are 3 (site-1, site-2, site-3)"),
        (unknown, "the job names the sites atlantis, which this federation does not know"),
    ):
        run = job.wait()
        assert run.state is not None
        assert run.state_type == StateType.FAILED
        assert words in str(run.state.message)
        assert run.run_count == 1
        assert job.site_runs() == {}
