"""The executor of `benchmarks.digits`: scikit-learn's digits, divided evenly between the sites.

Sites are named site-1, site-2, ...; the job's config says how many they are (`sites`).
"""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site

_TEST_SHARE = 0.2


def build(site: Site) -> nn.Module:
    """Returns the network: two convolutions, then one layer over their 4 x 4 maps."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def read(site: Site) -> TrainTest:
    """Returns the site's own images: each is at one site, to train on or to measure on."""
    sites = int(site.number("sites", 4))
    first = int(site.name.rpartition("-")[2]) - 1
    images, classes = _digits()
    held_out = round(_TEST_SHARE * len(classes))
    test, train = slice(first, held_out, sites), slice(held_out + first, None, sites)
    return TrainTest((images[train], classes[train]), (images[test], classes[test]))


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """Returns the images `(1797, 1, 8, 8)`, 0 to 1, and their classes, in a random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order, np.newaxis] / 16).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(digits.target[order].astype(np.int64))


sites = TorchExecutor(build, read, lr=0.1, epochs=1, batch_size=32)
torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first one imports much: now, not later
