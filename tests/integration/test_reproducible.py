"""The same seed gives the same model, to the last bit, wherever its sites run."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from prefect_federated import simulate
from prefect_federated.messages import Tensor
from prefect_federated.tasks.snapshots import read_model
from tests.integration.running import EXECUTORS, Running

ROUNDS = 3


def deployed(federation: Running, name: str) -> Mapping[str, Tensor]:
    parameters = federation.parameters(ROUNDS, sites=federation.sandbox.sites)
    assert isinstance(parameters["config"], dict)
    parameters["config"]["threads"] = 1
    deployment = federation.client.read_deployment_by_name(f"{name}/default")
    federation.wait_until_idle()
    run = federation.client.create_flow_run_from_deployment(
        deployment.id, parameters={**parameters, "executor": "dropping", "seed": 7}
    )
    job = federation.job(run.id, parameters)
    job.wait()
    return read_model(Path(job.reference().path))


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_threads_processes_and_a_real_federation_give_the_same_bits(
    federation: Running, prefect_api: str, name: str
) -> None:
    """With dropout, batch normalization, and updates that arrive in any order."""
    models = {"deployed": deployed(federation, name)}
    for processes in (None, 2):
        result = simulate(
            name,
            sites=federation.sandbox.sites,
            threads=3,
            processes=processes,
            code=[EXECUTORS],
            parameters={
                "executor": "dropping", "rounds": ROUNDS, "seed": 7, "config": {"threads": 1}
            },
        )  # fmt: skip
        models["processes" if processes else "threads"] = result.model
    bits = {
        label: {tensor: array.tobytes() for tensor, array in model.items()}
        for label, model in models.items()
    }
    assert bits["threads"] == bits["processes"]
    assert bits["threads"] == bits["deployed"]
    assert "1.num_batches_tracked" in bits["deployed"]
