"""Cyclic weight transfer on virtual sites, against the composition of the sites' own steps."""

import numpy as np
import pytest

from prefect_federated import simulate
from prefect_federated.errors import QuorumNotReached
from prefect_federated.flows.cyclic import cyclic
from prefect_federated.messages import JsonValue
from tests.flows import quadratics

EXECUTOR = "tests.flows.quadratics"

pytestmark = pytest.mark.usefixtures("prefect_api")


def trained_by(order: list[str]) -> quadratics.Vector:
    w = np.zeros(3)
    for site in order:
        h, a = quadratics.problem(site)
        w = a + (1 - quadratics.LR * h) ** quadratics.STEPS * (w - a)
    return w


@pytest.mark.parametrize(
    ("order", "cycle"),
    [
        ("given", ["site-1", "site-2", "site-3"]),
        (["site-3", "site-1"], ["site-3", "site-1"]),
    ],
)
def test_each_site_trains_the_model_that_the_one_before_has_trained(
    order: JsonValue, cycle: list[str]
) -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 2, "order": order}
    result = simulate(cyclic, sites=3, parameters=parameters)
    np.testing.assert_allclose(result.model["w"], trained_by(cycle * 2), rtol=0, atol=1e-12)
    rounds = [row for row in result.metrics if row["kind"] == "train"]
    assert [(row["round"], row["sites"]) for row in rounds] == [
        (1, f"{len(cycle)}/{len(cycle)}"), (2, f"{len(cycle)}/{len(cycle)}")
    ]  # fmt: skip


def test_a_shuffled_order_is_another_in_each_round_and_the_same_for_the_same_seed() -> None:
    parameters: dict[str, JsonValue] = {"executor": EXECUTOR, "rounds": 6, "order": "shuffled"}
    first, again = (simulate(cyclic, sites=3, parameters=parameters) for _ in range(2))
    np.testing.assert_array_equal(first.model["w"], again.model["w"])
    other = simulate(cyclic, sites=3, parameters={**parameters, "seed": 1})
    assert not np.array_equal(first.model["w"], other.model["w"])


def test_a_site_that_fails_is_passed_over_or_ends_the_job_as_it_says() -> None:
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR, "rounds": 1, "quorum": 0.6, "config": {"raises_at": ["site-2"]}
    }  # fmt: skip
    result = simulate(cyclic, sites=3, parameters=parameters)
    np.testing.assert_allclose(result.model["w"], trained_by(["site-1", "site-3"]), atol=1e-12)
    assert "site-2: ValueError" in str(result.metrics[1]["failures"])
    with pytest.raises(QuorumNotReached, match="ended at site 'site-2'"):
        simulate(cyclic, sites=3, parameters={**parameters, "on_missing": "fail"})


def test_the_best_model_is_judged_by_what_all_sites_measure_of_it() -> None:
    """What a site measures before it trains is of its predecessor's model, not of the round's."""
    parameters: dict[str, JsonValue] = {
        "executor": EXECUTOR, "rounds": 2, "best_by": "-loss", "config": {"validates": True}
    }  # fmt: skip
    result = simulate(cyclic, sites=3, parameters=parameters)
    sites = ["site-1", "site-2", "site-3"]
    for rounds in (1, 2):
        measured = next(
            row["loss"]
            for row in result.metrics
            if row["kind"] == "evaluate" and row["round"] == rounds
        )
        model = trained_by(sites * rounds)
        expected = np.mean([quadratics.loss(model, site) for site in sites])
        assert measured == pytest.approx(expected, rel=1e-6)
