"""Ditto on virtual sites whose losses are quadratics, against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from prefect_federated import simulate
from prefect_federated.flows.ditto import ditto
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.snapshots import read_model
from tests.flows import quadratics

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_the_global_model_is_fedavgs_and_the_personal_ones_lie_between_it_and_the_sites_own() -> (
    None
):
    """At rest v minimizes h / 2 (v - a)^2 + lambda / 2 (v - w)^2."""
    parameters: dict[str, JsonValue] = {"executor": "tests.flows.quadratics", "rounds": 2}
    average = simulate(fedavg, sites=3, parameters=parameters)
    result = simulate(ditto, sites=3, parameters={**parameters, "ditto_lambda": 0.5})
    np.testing.assert_array_equal(result.model["w"], average.model["w"])

    given = simulate(fedavg, sites=3, parameters={**parameters, "rounds": 1}).model["w"]
    states = result.path.parent.parent / "state" / result.path.parent.name
    expected_losses = []
    for site in ("site-1", "site-2", "site-3"):
        h, a = quadratics.problem(site)
        expected = (h * a + 0.5 * given) / (h + 0.5)
        own = read_model(states / site / "kept" / "personal" / "2.safetensors")["w"]
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-9)
        expected_losses.append(quadratics.loss(expected, site))
    last = [row for row in result.metrics if row["kind"] == "ditto"][-1]
    assert last["personal_loss"] == pytest.approx(np.mean(expected_losses), rel=1e-6)
    assert last["bytes_received"] == 3 * 3 * 8  # the global model's three numbers, and no more


def test_personal_models_stay_at_their_sites(tmp_path: Path) -> None:
    parameters: dict[str, JsonValue] = {"executor": "tests.flows.quadratics", "rounds": 1}
    result = simulate(ditto, sites=2, output=tmp_path, parameters=parameters)
    personal = read_model(next(tmp_path.glob("state/*/site-1/kept/personal/1.safetensors")))["w"]
    sent = [read_model(file) for file in result.path.parent.glob("*.safetensors")]
    assert sent
    for model in sent:
        assert list(model) == ["w"]
        assert not np.allclose(model["w"], personal, atol=1e-3)
