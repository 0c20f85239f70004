"""SCAFFOLD's control variates with a NumPy executor, against the paper's lines by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_federated.control_variates import (
    LocalControl,
    joined,
    option_of,
    parted,
    server_step,
)
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, executor
from prefect_federated.messages import JsonValue, Tensors, Update

Vector = NDArray[np.float64]
LR, STEPS = 0.1, 5


def site(folder: Path, name: str = "a", round: int = 1, **config: JsonValue) -> Site:
    return Site(name, folder, folder / name, config=config, round=round)


def gradient(w: Vector, name: str) -> Vector:
    """Of 1/2 sum curvature (w - optimum)^2, both of which differ by site."""
    curvature, optimum = {"a": (1.0, 3.0), "b": (4.0, -1.0), "c": (2.0, 0.5)}[name]
    return curvature * (w - optimum)


@executor
def scaffold(received: Tensors, site: Site) -> Update:
    """As in the module's docstring."""
    control = LocalControl(received, site)
    w = dict(control.model)
    for _ in range(STEPS):
        g = {"w": gradient(w["w"], site.name)}
        w = {name: w[name] - LR * (g[name] + control.correction[name]) for name in w}
    return Update(joined(w, control.option_2(w, STEPS, LR)))


def test_joining_and_parting_are_inverse() -> None:
    model, control = {"a.b": np.ones(2), "n": np.array(3)}, {"a.b": np.zeros(2)}
    again = parted(joined(model, control))
    assert [list(part) for part in again] == [["a.b", "n"], ["a.b"]]
    np.testing.assert_array_equal(again[0]["a.b"], model["a.b"])
    np.testing.assert_array_equal(again[1]["a.b"], control["a.b"])


def test_a_model_with_the_prefix_in_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'control/w' begins with 'control/'"):
        joined({"control/w": np.ones(1)}, {})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"control/w": np.ones(1)}, "not in the model"),
        ({"w": np.ones(2), "control/w": np.ones(1)}, r"\(1,\); the tensor is \(2,\) in the model"),
    ],
)
def test_a_control_variate_of_no_tensor_is_refused(tensors: Tensors, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parted(tensors)


def test_option_2_is_line_12_by_hand(tmp_path: Path) -> None:
    x, c = np.array([2.0]), np.array([0.25])
    update = scaffold(joined({"w": x}, {"w": c}), site(tmp_path))

    y = x
    for _ in range(STEPS):
        y = y - LR * (gradient(y, "a") - 0 + c)
    np.testing.assert_array_equal(update.tensors["w"], y)
    # In another order: units in the last place of numbers near 1.
    np.testing.assert_allclose(update.tensors["control/w"], -c + (x - y) / (STEPS * LR), rtol=1e-14)


def test_the_next_round_starts_from_the_counted_control_variate_and_no_other(
    tmp_path: Path,
) -> None:
    received = joined({"w": np.array([2.0])}, {"w": np.array([0.25])})
    first = scaffold(received, site(tmp_path, round=1)).tensors["control/w"]
    lost = scaffold(received, site(tmp_path, round=2, counted={"a": 1}))
    again = scaffold(received, site(tmp_path, round=2, counted={"a": 1}))
    np.testing.assert_array_equal(again.tensors["w"], lost.tensors["w"])

    uncounted = LocalControl(received, site(tmp_path, round=3, counted={"a": 1, "b": 2}))
    np.testing.assert_array_equal(uncounted.own["w"], first)
    np.testing.assert_array_equal(uncounted.correction["w"], 0.25 - first)

    never = LocalControl(received, site(tmp_path, round=3, counted={"b": 2}))
    np.testing.assert_array_equal(never.own["w"], [0])


def test_a_counted_control_variate_that_is_gone_is_a_clear_failure(tmp_path: Path) -> None:
    received = joined({"w": np.array([2.0])}, {"w": np.array([0.25])})
    with pytest.raises(ConfigurationError, match="nothing of round 4 "):
        LocalControl(received, site(tmp_path, round=5, counted={"a": 4}))


def test_a_model_of_another_shape_than_in_the_round_before_is_refused(tmp_path: Path) -> None:
    scaffold({"w": np.zeros(1), "control/w": np.zeros(1)}, site(tmp_path))
    with pytest.raises(ConfigurationError, match=r"'w' has the shape \(1,\), the model's tensor"):
        LocalControl(
            {"w": np.zeros(2), "control/w": np.zeros(2)},
            site(tmp_path, round=2, counted={"a": 1}),
        )


@pytest.mark.parametrize("counted", [[1], {"a": "1"}, {"a": True}, {"a": -1}, {"a": 1.5}])
def test_what_is_no_table_of_rounds_is_refused(tmp_path: Path, counted: JsonValue) -> None:
    with pytest.raises(ConfigurationError, match="config 'counted'"):
        LocalControl({"w": np.zeros(1)}, site(tmp_path, counted=counted))


def test_without_a_control_variate_in_the_first_message_all_named_tensors_get_one(
    tmp_path: Path,
) -> None:
    control = LocalControl({"w": np.ones(2), "seen": np.array(3)}, site(tmp_path), ["w"])
    change = control.option_1({"w": np.full(2, 0.5)})
    assert list(change) == ["w"]
    np.testing.assert_array_equal(change["w"], [0.5, 0.5])


def test_a_control_variate_of_what_is_not_trained_is_told_not_to_change(tmp_path: Path) -> None:
    received = joined({"w": np.ones(1), "mean": np.ones(1)}, {"w": np.ones(1), "mean": np.ones(1)})
    control = LocalControl(received, site(tmp_path), ["w"])
    change = control.option_2({"w": np.zeros(1), "mean": np.zeros(1)}, 1, 1.0)
    np.testing.assert_array_equal(change["mean"], [0])
    np.testing.assert_array_equal(change["w"], [-1 + 1 / 1])
    assert list(control.correction) == ["w"]


def test_no_step_at_all_leaves_the_control_variate_and_no_rate_is_refused(tmp_path: Path) -> None:
    control = LocalControl(joined({"w": np.ones(1)}, {"w": np.ones(1)}), site(tmp_path))
    np.testing.assert_array_equal(control.option_2({"w": np.ones(1)}, 0, 0.1)["w"], [0])
    with pytest.raises(ConfigurationError, match="the learning rate is 0"):
        control.option_2({"w": np.ones(1)}, 1, 0)


@pytest.mark.parametrize("option", [0, 3, True, "1", None])
def test_an_option_that_the_paper_does_not_have_is_refused(
    tmp_path: Path, option: JsonValue
) -> None:
    with pytest.raises(ConfigurationError, match=r"SCAFFOLD has 1 .* and 2"):
        option_of(site(tmp_path, option=option))
    assert option_of(site(tmp_path)) == 2


def test_float32_is_kept_as_float32(tmp_path: Path) -> None:
    x = np.ones(3, np.float32)
    control = LocalControl(joined({"w": x}, {"w": x}), site(tmp_path))
    change = control.option_2({"w": x / np.float32(3)}, 7, 0.1)
    assert change["w"].dtype == np.float32


def test_the_servers_step_is_lines_16_and_17_and_buffers_become_their_mean() -> None:
    model = {"w": np.array([1.0]), "mean": np.array([5.0]), "frozen": np.array([7.0])}
    mean = {"w": np.array([3.0]), "mean": np.array([6.0]), "control/w": np.array([0.5])}
    new, control = server_step(model, {"w": np.array([2.0])}, mean, lr=0.5, share=0.25)
    assert {name: array.tolist() for name, array in new.items()} == {
        "w": [1 + 0.5 * (3 - 1)], "mean": [6], "frozen": [7]
    }  # fmt: skip
    assert control["w"].tolist() == [2 + 0.25 * 0.5]

    whole, first = server_step(model, {}, {"w": np.array([0.1]), "control/w": np.array([0.5])})
    assert (whole["w"].tolist(), first["w"].tolist()) == ([0.1], [0.5])


def test_the_mean_of_all_control_variates_stays_the_servers_through_lost_updates(
    tmp_path: Path,
) -> None:
    """Sites of which some are asked, some updates lost, some done twice; and it converges."""
    names, random = ("a", "b", "c"), np.random.default_rng(0)
    model: Tensors = {"w": np.array([10.0])}
    control: Tensors = {}
    counted: dict[str, JsonValue] = {}
    for number in range(1, 200):
        arrived = []
        for name in names:
            if random.random() < 0.3:
                continue  # not asked
            here = site(tmp_path, name, number, counted={**counted})
            update = scaffold(joined(model, control), here)
            if random.random() < 0.2:
                update = scaffold(joined(model, control), here)  # its process had died
            if random.random() < 0.7:
                arrived.append((name, update.tensors))
        if not arrived:
            continue
        counted |= {name: number for name, _ in arrived}
        mean = {key: np.mean([u[key] for _, u in arrived], axis=0) for key in arrived[0][1]}
        model, control = server_step(model, control, mean, share=len(arrived) / len(names))
        own = [
            LocalControl(joined(model, control), site(tmp_path, name, 999, counted=counted)).own
            for name in names
        ]
        # 200 rounds of sums of numbers up to 40, each rounded to 53 bits.
        np.testing.assert_allclose(
            control["w"], np.mean([each["w"] for each in own], axis=0), atol=1e-12
        )
    # Where the sum of the gradients is 0, (3 - 4 + 1) / 7: FedAvg's mean of local models is biased.
    np.testing.assert_allclose(model["w"], [0.0], atol=1e-6)


def test_a_site_keeps_its_own_folder(tmp_path: Path) -> None:
    scaffold({"w": np.zeros(1), "control/w": np.zeros(1)}, site(tmp_path))
    other = replace(site(tmp_path, "b", 2, counted={"b": 1}))
    with pytest.raises(ConfigurationError, match="nothing of round 1"):
        LocalControl({"w": np.zeros(1), "control/w": np.zeros(1)}, other)
