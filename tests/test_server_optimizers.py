"""The server's optimizers, against torch's and the paper's formulas in float64."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.server_optimizers import Schedule, ServerOptimizer, learning_rate

RANDOM = np.random.default_rng(5)
STEPS = 8
GRADIENTS = [{"w": RANDOM.normal(size=(40, 3)), "b": RANDOM.normal(size=())} for _ in range(STEPS)]
START = {"w": RANDOM.normal(size=(40, 3)), "b": np.array(0.5)}


def path_of(optimizer: ServerOptimizer, start: Tensors = START) -> list[Tensors]:
    """Steps along the gradients, each of which is what the sites' mean lacks to the model."""
    model: Tensors = start
    moments: Mapping[str, Tensors] = {}
    models: list[Tensors] = []
    for number, gradient in enumerate(GRADIENTS, start=1):
        mean = {name: array - gradient[name] for name, array in model.items()}
        model, moments = optimizer.step(model, mean, moments, number)
        models.append(model)
    return models


def torchs_path(build: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> list[Tensors]:
    parameters = {name: torch.tensor(array) for name, array in START.items()}
    optimizer = build(list(parameters.values()))
    models: list[Tensors] = []
    for gradient in GRADIENTS:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()
        models.append({name: value.numpy().copy() for name, value in parameters.items()})
    return models


def assert_same(found: list[Tensors], expected: list[Tensors]) -> None:
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        for name in one:
            # model - (model - gradient) is the gradient up to a few 1e-16; the rest as much again.
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    expected = torchs_path(lambda of: torch.optim.SGD(of, lr=0.3, momentum=momentum))
    assert_same(path_of(ServerOptimizer("sgd", lr=0.3, momentum=momentum)), expected)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.99), (0.0, 0.999), (0.5, 0.9)])
def test_adam_is_torchs(beta1: float, beta2: float) -> None:
    expected = torchs_path(lambda of: torch.optim.Adam(of, lr=0.1, betas=(beta1, beta2), eps=1e-3))
    assert_same(path_of(ServerOptimizer("adam", lr=0.1, beta1=beta1, beta2=beta2)), expected)


def test_adagrad_is_torchs() -> None:
    expected = torchs_path(
        lambda of: torch.optim.Adagrad(of, lr=0.1, initial_accumulator_value=0.04, eps=0.2)
    )
    assert_same(path_of(ServerOptimizer("adagrad", lr=0.1, tau=0.2)), expected)


def papers_path(name: str, lr: float, beta1: float, beta2: float, tau: float) -> list[Tensors]:
    """Algorithm 2 of Reddi et al. 2021, line by line: Delta is minus the gradient."""
    x = dict(START)
    m: dict[str, Tensor] = {key: np.zeros(array.shape) for key, array in START.items()}
    v: dict[str, Tensor] = {key: np.full(array.shape, tau**2) for key, array in START.items()}
    models: list[Tensors] = []
    for gradient in GRADIENTS:
        for key in x:
            delta = -gradient[key]
            m[key] = beta1 * m[key] + (1 - beta1) * delta
            if name == "yogi":
                v[key] = v[key] - (1 - beta2) * delta**2 * np.sign(v[key] - delta**2)
            else:
                v[key] = beta2 * v[key] + (1 - beta2) * delta**2
            x[key] = x[key] + lr * m[key] / (np.sqrt(v[key]) + tau)
        models.append({key: np.asarray(value) for key, value in x.items()})
    return models


def test_yogi_and_adam_without_bias_correction_are_the_papers() -> None:
    yogi = ServerOptimizer("yogi", lr=0.1, beta1=0.8, beta2=0.95, tau=0.05)
    adam = replace(yogi, name="adam", bias_correction=False)
    for optimizer in yogi, adam:
        expected = papers_path(optimizer.name, lr=0.1, beta1=0.8, beta2=0.95, tau=0.05)
        assert_same(path_of(optimizer), expected)


@pytest.mark.parametrize("code", ["f2", "f4", "f8", "c8"])
def test_sgd_with_rate_one_and_no_momentum_gives_the_mean_to_the_last_bit(code: str) -> None:
    model = {"w": RANDOM.normal(size=200).astype(code)}
    mean = {"w": RANDOM.normal(size=200).astype(code)}
    after, moments = ServerOptimizer("sgd").step(model, mean, {}, 1)
    assert after["w"].tobytes() == mean["w"].tobytes()
    assert moments == {}


@pytest.mark.parametrize("name", ["sgd", "adam", "yogi", "adagrad"])
def test_buffers_counters_and_what_the_mean_lacks_are_not_optimized(name: str) -> None:
    model = {
        "w": np.ones(3, np.float32),
        "running_var": np.ones(3, np.float32),
        "seen": np.array(3),
        "own": np.ones(2),
    }
    mean = {
        "w": np.zeros(3, np.float32),
        "running_var": np.full(3, 0.1, np.float32),
        "seen": np.array(5),
    }
    optimizer = ServerOptimizer(name, lr=0.1, momentum=0.5)  # type: ignore[arg-type]
    after, moments = optimizer.step(model, mean, {}, 1, {"running_var"})
    np.testing.assert_array_equal(after["running_var"], mean["running_var"])
    assert after["seen"] == 5
    assert after["own"] is model["own"]
    assert (after["w"] < 1).all()
    assert (after["w"] > 0).all()
    assert {key for tensors in moments.values() for key in tensors} == {"w"}


@pytest.mark.parametrize(
    ("code", "moment"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("c8", "c8"), ("c16", "c16")]
)
@pytest.mark.parametrize("name", ["sgd", "adam", "yogi", "adagrad"])
def test_dtypes_stay_and_moments_have_float32_at_least(name: str, code: str, moment: str) -> None:
    model = {"w": RANDOM.normal(size=70_000).astype(code)}
    mean = {"w": RANDOM.normal(size=70_000).astype(code)}
    optimizer = ServerOptimizer(name, lr=0.1, momentum=0.9)  # type: ignore[arg-type]
    after, moments = optimizer.step(model, mean, {}, 1)
    again, _ = optimizer.step(after, mean, moments, 2)
    assert after["w"].dtype == again["w"].dtype == np.dtype(code)
    assert {tensors["w"].dtype for tensors in moments.values()} == {np.dtype(moment)}
    assert np.isfinite(again["w"]).all()
    if code == "c8":  # as of the real and the imaginary parts by themselves
        parts, _ = optimizer.step({"w": model["w"].imag}, {"w": mean["w"].imag}, {}, 1)
        np.testing.assert_array_equal(parts["w"], after["w"].imag)


def test_a_step_changes_none_of_its_arguments_and_takes_only_its_own_moments() -> None:
    optimizer = ServerOptimizer("adam", lr=0.1)
    model, mean = {"w": np.ones(3)}, {"w": np.zeros(3)}
    _, moments = optimizer.step(model, mean, {"best": {"w": np.full(3, 7.0)}}, 1)
    assert "best" not in moments
    before = {name: tensors["w"].copy() for name, tensors in moments.items()}
    optimizer.step(model, mean, moments, 2)
    assert all((moments[name]["w"] == before[name]).all() for name in before)
    assert model["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["w", "new"])
def test_a_mean_of_another_shape_or_name_is_refused(name: str) -> None:
    with pytest.raises(UpdateRejected, match=f"mean has the tensor '{name}' of shape"):
        ServerOptimizer("adam").step({"w": np.zeros(3)}, {name: np.zeros(4)}, {}, 1)


def test_an_unknown_optimizer_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="'adamw'; choose one of sgd, adam, yogi, adagrad"):
        ServerOptimizer("adamw")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option", [{"momentum": 1.0}, {"beta1": -0.1}, {"beta2": math.nan}, {"tau": 0.0}, {"lr": -1.0}]
)
def test_a_number_out_of_its_range_is_named(option: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"optimizer's {next(iter(option))} is"):
        ServerOptimizer("adam", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("step", [0.5, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]),
        ("exponential", [0.5, 1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ("cosine", [0.5, 1] + [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]),
    ],
)
def test_a_schedule_rises_in_the_warm_up_and_then_falls(
    schedule: Schedule, expected: list[float]
) -> None:
    found = [
        learning_rate(schedule, 1.0, number, 8, warmup=2, factor=0.5) for number in range(1, 9)
    ]
    assert found == pytest.approx(expected)


def test_an_unknown_schedule_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="'linear'; choose one of constant, step, exp"):
        learning_rate("linear", 1.0, 1, 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="schedule's factor is 2"):
        learning_rate("step", 1.0, 1, 5, factor=2)
