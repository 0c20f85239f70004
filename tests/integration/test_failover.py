"""Processes of a job that die, hang, or come back from the dead."""

import signal

from prefect.client.schemas.objects import StateType
from prefect.states import AwaitingRetry

from prefect_federated.tasks.labels import ROUND
from tests.integration.running import Running, eventually


def test_a_killed_controller_resumes_after_its_last_snapshot_and_the_sites_stay(
    federation: Running,
) -> None:
    job = federation.submit(rounds=4, script={"3": "wait at the gate"})
    before = {call.site: call.pid for call in job.wait_for_round(3)}
    killed_at = job.kill_controller()
    job.open_gate(3)
    again = eventually(lambda: job.calls(3, after=killed_at), "round 3 begins again")
    seconds = again[0].at - killed_at
    print(f"controller killed: round 3 began again after {seconds:.1f} s")
    assert seconds < 15
    run = job.wait()
    assert run.run_count == 2
    assert {call.site: call.pid for call in job.calls()} == before
    done = [(call.round, call.site) for call in job.calls()]
    assert {entry for entry in done if done.count(entry) > 1} <= {(3, site) for site in job.sites}
    job.check_counted_once()
    job.wait_for_site_runs(StateType.COMPLETED)


def test_a_site_whose_process_is_killed_is_started_again_and_takes_part_again(
    federation: Running,
) -> None:
    job = federation.submit(rounds=3, script={"site-2 2": "die once"})
    job.wait()
    runs = job.wait_for_site_runs(StateType.COMPLETED)
    assert {site: run.run_count for site, run in runs.items()} == {
        "site-1": 1, "site-2": 2, "site-3": 1
    }  # fmt: skip
    assert len({call.pid for call in job.calls() if call.site == "site-2"}) == 2
    job.check_counted_once()


def test_a_job_that_crashes_again_and_again_in_one_round_ends_failed_with_the_reason(
    federation: Running,
) -> None:
    job = federation.submit(script={"1": "wait at the gate"}, sites=["site-1"])
    job.wait_for_round(1)
    eventually(lambda: job.run.labels.get(ROUND) == 1, "the job tells its round")
    run = job.kill_controller_until_failed()
    assert run.state is not None
    assert "crashed 4 times in round 1" in str(run.state.message)
    assert run.run_count <= 4
    federation.wait_until_idle()
    job.wait_for_site_runs(StateType.CANCELLED)


def test_a_controller_that_comes_back_from_the_dead_changes_nothing(federation: Running) -> None:
    job = federation.submit(rounds=3, script={"2": "wait at the gate"})
    job.wait_for_round(2)
    old = job.controller()
    old.send_signal(signal.SIGSTOP)
    try:
        federation.client.set_flow_run_state(
            job.run_id, AwaitingRetry(message="Its host was cut off."), force=True
        )
        job.open_gate(2)
        run = job.wait()
        assert run.run_count == 2
        results = job.reference()
    finally:
        old.send_signal(signal.SIGCONT)
    eventually(lambda: not old.is_running(), "the old controller ends")
    run = job.run
    assert run.state_type == StateType.COMPLETED
    assert run.run_count == 2
    assert job.reference() == results
    job.check_counted_once()
    job.wait_for_site_runs(StateType.COMPLETED)
