"""One of five sites sends poison: the mean is ruined, robust aggregators learn."""

import numpy as np
import pytest

from prefect_federated import SimulationResult, simulate
from prefect_federated.errors import NotEnoughSites
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from tests.flows import trial_executors as trial

TRUTH = np.array([1.0, -2.0, 3.0, 0.5])

pytestmark = pytest.mark.usefixtures("prefect_api")


def run(sites: int = 5, **more: JsonValue) -> SimulationResult:
    parameters: dict[str, JsonValue] = {
        "executor": trial.__name__, "rounds": 20, "config": {"poison_at": ["site-5"]}, **more
    }  # fmt: skip
    return simulate(fedavg, sites=sites, threads=2, parameters=parameters)


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_job_learns_beside_a_site_that_sends_poison(aggregator: str) -> None:
    result = run(aggregator=aggregator)
    np.testing.assert_allclose(result.model["slopes"], TRUTH, atol=0.15)


def test_the_mean_does_not() -> None:
    assert np.abs(run(rounds=3).model["slopes"] - TRUTH).max() > 100


def test_too_few_sites_for_krum_end_the_job_and_say_how_many_it_needs() -> None:
    with pytest.raises(NotEnoughSites, match="at least 5 sites"):
        run(sites=4, aggregator="krum", rounds=1)
