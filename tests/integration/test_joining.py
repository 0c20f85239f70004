"""Sites that become part of a federation while a job of it runs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_federated.agents.sandbox import create_sandbox
from prefect_federated.tasks.snapshots import read_model
from tests.integration.running import EXECUTORS, Running, attended, eventually


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Runs a federation of which one site is started; `new` has a kit, and was never there."""
    folder = tmp_path_factory.mktemp("joining")
    sandbox = create_sandbox(folder / "sandbox", ["site-1", "new"])
    try:
        sandbox.start_server()
        sandbox.start_site("site-1", code=[EXECUTORS])
        sandbox.wait_until_ready(["site-1"])
        with attended(sandbox, folder) as federation:
            yield federation
    finally:
        sandbox.stop()


def test_a_site_that_becomes_known_takes_part_in_the_running_job(federation: Running) -> None:
    sites = ["site-1", "new"]
    parameters = federation.parameters(rounds=4, script={"site-1 2": "wait at the gate"})
    config = parameters["config"]
    assert isinstance(config, dict)
    config["sites"] = sites
    deployment = federation.client.read_deployment_by_name("fedavg/default")
    run = federation.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    job = federation.job(run.id, parameters)
    job.wait_for_round(2, sites=1)
    federation.sandbox.start_site("new", code=[EXECUTORS])
    eventually(lambda: "new" in job.site_runs(), "the new site is dispatched")
    eventually(lambda: "joined: new" in federation.text_of_logs(run.id), "it has joined")
    job.open_gate(2)
    job.wait()
    job.check_counted_once(absent={1: ["new"], 2: ["new"]})


def test_an_asynchronous_job_runs_on_real_sites(federation: Running) -> None:
    """A site that trains in step n adds 1 in row n of its column; each step moves by one update."""
    sites = ["site-1", "new"]
    parameters = federation.parameters(rounds=8, sites=sites, script={"4": "wait at the gate"})
    parameters["updates_per_round"] = 1
    deployment = federation.client.read_deployment_by_name("fedbuff/default")
    run = federation.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    job = federation.job(run.id, parameters)
    eventually(  # else one may have done all steps before the other has answered
        lambda: min(Counter(call.site for call in job.calls()).get(site, 0) for site in sites) > 1,
        "both have answered",
    )
    job.open_gate(4)
    job.wait()
    reference = job.reference()
    assert reference.round == 8
    counted = read_model(Path(reference.path))["counted"]
    assert counted.shape == (8, 2)
    # Each of the 8 steps adds one share: 1 if it is not stale, 1 / sqrt(2) if one step late, ...
    assert 8 / 3 < counted.sum() <= 8
    assert (counted.sum(axis=0) > 0).all()
