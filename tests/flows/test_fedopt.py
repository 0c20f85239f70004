"""FedOpt on virtual sites, against FedAvg and against torch's optimizers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from prefect_federated import SimulationResult, simulate
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.flows.fedopt import fedopt
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import read_model
from tests.flows import quadratics

SITES = ["site-1", "site-2", "site-3"]
PLAIN: Mapping[str, JsonValue] = {"executor": "tests.flows.quadratics", "rounds": 4}

pytestmark = pytest.mark.usefixtures("prefect_api")


def run(**more: JsonValue) -> SimulationResult:
    return simulate(fedopt, sites=3, threads=2, parameters={**PLAIN, **more})


def test_sgd_with_the_rate_1_and_no_momentum_is_fedavg() -> None:
    average = simulate(fedavg, sites=3, parameters=dict(PLAIN))
    result = run(server_optimizer="sgd", server_lr=1, momentum=0)
    np.testing.assert_array_equal(result.model["w"], average.model["w"])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_server_steps_as_torchs_optimizer_along_the_pseudo_gradient(name: str) -> None:
    """An independent loop: the sites' closed form, and torch for the server's step."""
    w = torch.zeros(3, dtype=torch.float64)
    optimizer = (
        torch.optim.SGD([w], lr=0.5, momentum=0.9)
        if name == "sgd"
        else torch.optim.Adam([w], lr=0.5, betas=(0.9, 0.99), eps=1e-3)
    )
    for _ in range(4):
        now = w.numpy()
        problems = [quadratics.problem(site) for site in SITES]
        trained = [a + (1 - quadratics.LR * h) ** quadratics.STEPS * (now - a) for h, a in problems]
        w.grad = torch.from_numpy(now - np.mean(trained, axis=0))
        optimizer.step()
    result = run(server_optimizer=name, server_lr=0.5)
    np.testing.assert_allclose(result.model["w"], w.numpy(), rtol=0, atol=1e-10)


def test_an_optimizer_resumes_with_its_moments(tmp_path: Path) -> None:
    """A job that comes back in its third round ends where one that does not ends."""
    whole = run(server_optimizer="yogi", server_lr=0.3)
    retried = fedopt.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(tuple(SITES), 2, tmp_path, tmp_path)):
        reference = retried(
            **PLAIN, server_optimizer="yogi", server_lr=0.3, quorum=1.0,
            config={"fails_once_in": 3, "fails_once_at": SITES},
        )  # fmt: skip
    np.testing.assert_array_equal(read_model(Path(reference.path))["w"], whole.model["w"])


def test_an_unknown_optimizer_names_the_choices() -> None:
    with pytest.raises(Exception, match="'sgd', 'adam', 'yogi' or 'adagrad'"):
        run(server_optimizer="lion")
