"""SCAFFOLD on virtual sites whose losses are quadratics, against closed forms."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from prefect_federated import SimulationResult, simulate
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.flows.scaffold import scaffold
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import read_model
from tests.flows import quadratics

EXECUTOR = "tests.flows.quadratics"
SITES = ["site-1", "site-2", "site-3", "site-4"]

pytestmark = pytest.mark.usefixtures("prefect_api")


def run(rounds: int, sites: int = 4, **more: JsonValue) -> SimulationResult:
    parameters: Mapping[str, JsonValue] = {"executor": EXECUTOR, "rounds": rounds, **more}
    return simulate(scaffold, sites=sites, threads=2, parameters=parameters)


def kept_at_sites(result: SimulationResult) -> dict[str, quadratics.Vector]:
    """Returns each site's newest c_i, from its own folder."""
    folder = result.path.parent.parent / "state" / result.path.parent.name
    found = {}
    for kept in sorted(folder.glob("*/kept/control")):
        newest = max(kept.iterdir(), key=lambda file: int(file.stem))
        found[kept.parent.parent.name] = np.asarray(read_model(newest)["w"])
    return found


def control_of(result: SimulationResult) -> quadratics.Vector:
    """Returns the server's c of the last round, from the job's snapshot."""
    (file,) = sorted(result.path.parent.glob("round-*.control.safetensors"))[-1:]
    return np.asarray(read_model(file)["w"])


def test_fedavg_stalls_at_its_bias_where_scaffold_reaches_the_optimum() -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 30}
    stalled = simulate(fedavg, sites=4, threads=2, parameters=parameters).model["w"]
    optimum, bias = quadratics.optimum(SITES), quadratics.fixed_point(SITES)
    np.testing.assert_allclose(stalled, bias, rtol=0, atol=1e-9)
    assert np.abs(bias - optimum).max() > 0.1

    result = run(rounds=30)
    np.testing.assert_allclose(result.model["w"], optimum, rtol=0, atol=1e-9)


@pytest.mark.parametrize("option", [1, 2])
def test_the_mean_of_the_sites_variates_is_the_servers_after_full_participation(
    option: int,
) -> None:
    result = run(rounds=3, option=option)
    kept = kept_at_sites(result)
    assert list(kept) == SITES
    np.testing.assert_allclose(
        np.mean(list(kept.values()), axis=0), control_of(result), rtol=0, atol=1e-12
    )
    if option == 1:  # c_i is the gradient at the model of the round
        before = run(rounds=2, option=1).model["w"]
        for site, own in kept.items():
            h, a = quadratics.problem(site)
            np.testing.assert_allclose(own, h * (before - a), rtol=0, atol=1e-12)


def test_one_site_whose_variates_are_zero_is_fedavg() -> None:
    """With one site c - c_1 is 0 in every round."""
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 3}
    average = simulate(fedavg, sites=1, parameters=parameters)
    np.testing.assert_array_equal(run(rounds=3, sites=1).model["w"], average.model["w"])


def test_the_first_round_of_all_sites_is_fedavg_with_equal_weights() -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 1}
    average = simulate(fedavg, sites=3, parameters=parameters)  # each update has the weight 1
    np.testing.assert_array_equal(run(rounds=1, sites=3).model["w"], average.model["w"])


def test_sampled_sites_change_the_servers_variate_by_their_share() -> None:
    """c moves by 1 / N of what the sampled sites' c_i moved, as in Algorithm 1, line 17."""
    result = run(rounds=4, sites_per_round=2)
    kept = kept_at_sites(result)
    total: quadratics.Vector = np.sum(list(kept.values()), axis=0)
    assert 2 <= len(kept) <= 4
    np.testing.assert_allclose(total / len(SITES), control_of(result), rtol=0, atol=1e-12)


def test_a_site_that_fails_keeps_its_variate_and_the_means_agree() -> None:
    result = run(rounds=3, config={"raises_at": ["site-2"]})
    kept = kept_at_sites(result)
    assert list(kept) == ["site-1", "site-3", "site-4"]
    total: quadratics.Vector = np.sum(list(kept.values()), axis=0)
    np.testing.assert_allclose(total / 4, control_of(result), rtol=0, atol=1e-12)


def test_a_round_that_is_done_again_starts_from_the_variates_that_counted(tmp_path: Path) -> None:
    """Site-3 fails once in round 3; the others have kept a c_i of that round by then."""
    whole = run(rounds=4)
    retried = scaffold.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(tuple(SITES), 2, tmp_path, tmp_path)):
        reference = retried(
            executor=EXECUTOR, rounds=4, quorum=1.0,
            config={"fails_once_in": 3, "fails_once_at": ["site-3"]},
        )  # fmt: skip
    assert [row["sites"] for row in reference.history if row["round"] == 3] == ["4/4"]
    np.testing.assert_array_equal(read_model(Path(reference.path))["w"], whole.model["w"])


def test_weights_by_examples_agree_in_both_means() -> None:
    """With equal weights of examples it is the paper's uniform mean."""
    result = run(rounds=2, weighting="examples")
    np.testing.assert_array_equal(result.model["w"], run(rounds=2).model["w"])


def test_unequal_weights_of_sites_that_come_in_different_rounds_agree() -> None:
    """c = sum_i n_i c_i / sum_i n_i, though the sum of all n_i is known only when all have come."""
    result = run(
        rounds=4, sites_per_round=2, weighting="examples", config={"weigh_unequally": True}
    )
    kept = kept_at_sites(result)
    assert list(kept) == SITES
    weights = [quadratics.weight(site) for site in SITES]
    expected = np.average([kept[site] for site in SITES], axis=0, weights=weights)
    np.testing.assert_allclose(control_of(result), expected, rtol=0, atol=1e-12)


def test_filters_that_change_the_variates_on_their_way_are_refused() -> None:
    with pytest.raises(ValueError, match="'clip' changes the sites' control variates"):
        run(rounds=1, filters=[{"filter": "clip", "at": "leaving_site", "max_norm": 1}])
