"""The executor of `benchmarks.heterogeneity`: a small convolutional network on a site's own images.

Group norms, since they keep no running statistics: what is compared are the algorithms, not how
statistics are averaged. Without any norm, steps along old gradients, as SCAFFOLD's and a server's
momentum make them, can throw such a network back to chance.

A pass over a site's images takes the same number of steps at every site, however many images it
has, as in the experiments of Karimireddy et al. 2020 (batches of 0.2 of a client's data).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.images import Examples
from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site, TaskFunction
from prefect_federated.messages import Tensors, Update

_FILE = "images.npz"


def write_site(folder: Path, train: Examples, test: Examples, classes: int) -> None:
    """Writes a site's images, and how many classes the network tells apart."""
    folder.mkdir(parents=True)
    np.savez(
        folder / _FILE,
        train_x=train.images,
        train_y=train.classes,
        test_x=test.images,
        test_y=test.classes,
        classes=np.array(classes),
    )


def network(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Returns two convolutions and two dense layers, for images of 8 x 8 and larger."""
    stride = 2 if min(height, width) >= 16 else 1
    return nn.Sequential(
        nn.Conv2d(channels, 8, kernel_size=5, stride=stride, padding=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 32),
        nn.LayerNorm(32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def build(site: Site) -> nn.Module:
    """Returns the untrained network for the site's images."""
    arrays = _arrays(site.data)
    _, channels, height, width = arrays["train_x"].shape
    return network(channels, height, width, int(arrays["classes"]))


def read(site: Site) -> TrainTest:
    """Returns the site's images: those it trains on, and its part of the test images."""
    arrays = _arrays(site.data)
    x, y, test_x, test_y = (
        torch.from_numpy(arrays[name]) for name in ("train_x", "train_y", "test_x", "test_y")
    )
    return TrainTest(train=(x, y), test=(test_x, test_y))


@functools.lru_cache(maxsize=256)
def _arrays(folder: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(folder / _FILE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class EqualSteps:
    """The executors of a `TorchExecutor`, with batches of a share of the site's own images.

    The job's config says how many steps a pass takes: `steps_per_epoch`, 5 if it does not.
    """

    def __init__(self, executors: TorchExecutor) -> None:
        self._executors = executors

    def federated_executors(self) -> Mapping[str, TaskFunction]:
        """Returns kind of site task -> function."""
        functions = self._executors.federated_executors()
        return {kind: _in_own_batches(function) for kind, function in functions.items()}


def _in_own_batches(function: TaskFunction) -> TaskFunction:
    def task(model: Tensors, site: Site) -> Update:
        images = len(_arrays(site.data)["train_y"])
        batch_size = math.ceil(images / max(site.number("steps_per_epoch", 5), 1))
        return function(model, replace(site, config={**site.config, "batch_size": batch_size}))

    return task


small_cnn = EqualSteps(TorchExecutor(build, read))
