"""Handwritten digits divided between sites: a small convolutional network in PyTorch.

A site's data folder holds `digits.npz`, see prepare.py.
"""

import numpy as np
import torch
from torch import nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site


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
    """Returns the site's own images, `(n, 1, 8, 8)` in 0 to 1, and the shared test images."""
    with np.load(site.data / "digits.npz", allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return TrainTest(
        train=(tensors["train_x"], tensors["train_y"]),
        test=(tensors["test_x"], tensors["test_y"]),
    )


digits = TorchExecutor(build, read, lr=0.1, epochs=2, batch_size=16)
# By these names a job finds them when it names the module alone: executor=digits
initialize, train, evaluate = digits.initialize, digits.train, digits.evaluate
scaffold, ditto = digits.scaffold, digits.ditto
