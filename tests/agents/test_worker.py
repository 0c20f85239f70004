import asyncio
import os
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Running, Scheduled
from prefect.workers.base import BaseWorker

from prefect_federated.agents.worker import (
    ControllerWorker,
    FederatedSiteWorker,
    SiteConfiguration,
    is_alive_here,
)


@flow(name="join")
def join() -> None:
    """Stands for a site's run; it is never run here."""


def test_prefect_finds_both_workers_by_their_types() -> None:
    assert BaseWorker.get_worker_class_from_type("federated-site") is FederatedSiteWorker
    assert BaseWorker.get_worker_class_from_type("federated-controller") is ControllerWorker


@pytest.mark.usefixtures("prefect_api")
def test_a_site_takes_no_command_environment_or_folder_from_the_server() -> None:
    template = {
        "job_configuration": {
            "command": "{{ command }}",
            "env": "{{ env }}",
            "working_dir": "{{ working_dir }}",
        },
        "variables": {"type": "object", "properties": {"command": {}, "env": {}}},
    }
    values = {"command": "rm -rf /", "env": {"LD_PRELOAD": "evil.so"}, "working_dir": "/"}
    configuration: SiteConfiguration = asyncio.run(
        SiteConfiguration.from_template_and_values(base_job_template=template, values=values)
    )
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4()))
    assert configuration.command is not None
    assert configuration.command.endswith("-m prefect_federated.agents.site_process")
    assert "LD_PRELOAD" not in configuration.env
    assert configuration.working_dir is None


def test_a_site_has_no_job_variables() -> None:
    variables = FederatedSiteWorker.get_default_base_job_template()["variables"]
    assert variables["properties"] == {}


@pytest.mark.parametrize("pid", ["", "no-number", "999999999", "its own"])
def test_a_process_that_is_not_the_runs_own_is_not_taken_for_it(pid: str) -> None:
    pid = str(os.getpid()) if pid == "its own" else pid
    assert not is_alive_here(FlowRun(flow_id=uuid4(), infrastructure_pid=pid))


@pytest.mark.usefixtures("prefect_api")
def test_runs_whose_process_ended_unheard_are_reported_with_the_next_heartbeat() -> None:
    async def steps() -> None:
        async with FederatedSiteWorker("hospital", name="hospital") as worker:
            assert isinstance(worker, FederatedSiteWorker)
            await worker.sync_with_backend()
            client = worker.client
            states: dict[UUID, State[None]] = {}
            given: list[State[None]] = [Running(), Cancelling(), Scheduled()]
            for state in given:
                run = await client.create_flow_run(join, work_pool_name="hospital")
                await client.set_flow_run_state(run.id, state, force=True)
                states[run.id] = state
            attended = await client.create_flow_run(join, work_pool_name="hospital")
            await client.set_flow_run_state(attended.id, Running(), force=True)
            worker._attended.add(attended.id)
            await worker.sync_with_backend()
            read = [(await client.read_flow_run(run)).state for run in [*states, attended.id]]
            assert [state and state.name for state in read] == [
                "Crashed", "Cancelled", "Scheduled", "Running"
            ]  # fmt: skip
            for run_id in [*states, attended.id]:
                await client.delete_flow_run(run_id)

    asyncio.run(steps())
