"""Ditto against the paper's step in NumPy, and what becomes of the personal model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.kept import Kept
from tests.adapters.torch.linear import LINEAR, START, assert_bits, assert_close, site, steps


def test_each_personal_step_adds_lambda_times_the_way_from_the_received_model(
    tmp_path: Path,
) -> None:
    strength, received, v = 0.8, START, START
    for number in (1, 2):
        here = site(tmp_path, number, epochs=2, ditto_epochs=4, ditto_lambda=strength)
        update = LINEAR.ditto(received, here)
        w = received
        v = steps(v, 4, lambda v: {name: strength * (v[name] - w[name]) for name in v})  # noqa: B023
        assert_close(Kept(tmp_path, "personal").read(number), v)
        received = {name: array + 0.1 for name, array in START.items()}
    assert update.metrics.keys() == {
        "val_loss", "train_loss", "personal_loss", "personal_train_loss"
    }  # fmt: skip


def test_the_update_is_that_of_plain_training_and_has_nothing_of_the_personal_model(
    tmp_path: Path,
) -> None:
    here = site(tmp_path, epochs=2, batch_size=7, mu=0.3)
    update, plain = LINEAR.ditto(START, here), LINEAR.train(START, here)
    assert_bits(update.tensors, plain.tensors)
    assert update.weight == plain.weight
    assert update.metrics_weight == plain.metrics_weight
    assert {name: update.metrics[name] for name in plain.metrics} == plain.metrics


def test_lambda_0_is_local_training_from_round_to_round_bit_for_bit(tmp_path: Path) -> None:
    local = START
    for number in (1, 2, 3):
        here = site(tmp_path, number, epochs=2, batch_size=7, ditto_lambda=0)
        LINEAR.ditto(START, here)
        local = LINEAR.train(local, here).tensors
        assert_bits(Kept(tmp_path, "personal").read(number), local)


def test_a_large_lambda_holds_the_personal_model_at_the_received_one(tmp_path: Path) -> None:
    # lr * lambda = 1: each step goes back to w and from there by one gradient step.
    LINEAR.ditto(START, site(tmp_path, epochs=50, ditto_lambda=1 / 0.05))
    near = Kept(tmp_path, "personal").read(1)
    free = LINEAR.train(START, site(tmp_path, epochs=50)).tensors
    way = np.linalg.norm(free["weight"] - START["weight"])
    assert np.linalg.norm(near["weight"] - START["weight"]) < 0.2 * way


def test_a_round_done_twice_starts_from_the_same_personal_model(tmp_path: Path) -> None:
    LINEAR.ditto(START, site(tmp_path, 1, epochs=3))
    first = LINEAR.ditto(START, site(tmp_path, 2, epochs=3))
    kept = {n: array.copy() for n, array in Kept(tmp_path, "personal").read(2).items()}
    again = LINEAR.ditto(START, site(tmp_path, 2, epochs=3))
    assert_bits(Kept(tmp_path, "personal").read(2), kept)
    assert first.metrics == again.metrics


def test_the_personal_metrics_are_those_after_its_training(tmp_path: Path) -> None:
    update = LINEAR.ditto(START, site(tmp_path, epochs=3))
    after = LINEAR.evaluate(Kept(tmp_path, "personal").read(1), site(tmp_path))
    assert update.metrics["personal_loss"] == after.metrics["loss"]
    assert update.metrics["personal_loss"] < update.metrics["val_loss"]


@pytest.mark.parametrize(("key", "value"), [("ditto_lambda", -0.1), ("ditto_epochs", 0)])
def test_a_setting_out_of_range_is_named(tmp_path: Path, key: str, value: float) -> None:
    here = replace(site(tmp_path), config={key: value})
    with pytest.raises(ConfigurationError, match=f"config '{key}' is {value}"):
        LINEAR.ditto(START, here)
