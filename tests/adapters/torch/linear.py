"""A linear model in float64 whose training is also written down in NumPy."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Tensors

Vector = NDArray[np.float64]
Model = Mapping[str, Vector]
LR = 0.05
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(30, 3)), RANDOM.normal(size=30)
START: Model = {"weight": RANDOM.normal(size=(1, 3)), "bias": RANDOM.normal(size=1)}


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs[:, 0] - targets) ** 2).mean()


ROWS = (torch.from_numpy(X), torch.from_numpy(Y))
LINEAR = TorchExecutor(
    lambda site: nn.Linear(3, 1, dtype=torch.float64),
    lambda site: TrainTest(ROWS, ROWS),
    loss=mean_square,
    metrics=lambda outputs, targets: {},
    lr=LR,
    batch_size=0,
)
"""Full batches: each epoch is one step."""


def site(folder: Path, round: int = 1, **config: JsonValue) -> Site:
    return Site("hospital", folder, folder, config=config, seed=7, round=round)


def gradient(model: Model) -> Model:
    error = X @ model["weight"][0] + model["bias"] - Y
    weight = 2 * error @ X / len(Y)
    return {"weight": weight[None], "bias": np.array([2 * error.mean()])}


def steps(start: Model, number: int, added: Callable[[Model], Model]) -> Model:
    """Takes gradient steps, each with something added to the gradient."""
    w = start
    for _ in range(number):
        g, more = gradient(w), added(w)
        w = {name: w[name] - LR * (g[name] + more[name]) for name in w}
    return w


def assert_close(left: Tensors, right: Model) -> None:
    for name, array in right.items():
        # Sums of 30 products in another order, a few steps long, of numbers near 1.
        np.testing.assert_allclose(left[name], array, rtol=1e-12, atol=1e-13, err_msg=name)


def assert_bits(left: Tensors, right: Tensors) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.tobytes() == right[name].tobytes(), name
