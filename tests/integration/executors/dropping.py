"""A torch executor with random layers and buffers, whose data are of the site's seed."""

import torch
from torch import nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site


def build(site: Site) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 6 * 6, 3),
    )  # fmt: skip


def read(site: Site) -> TrainTest:
    generator = torch.Generator().manual_seed(site.seed)
    images = torch.randn(50, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (50,), generator=generator)
    return TrainTest((images[:40], labels[:40]), (images[40:], labels[40:]))


dropping = TorchExecutor(build, read, lr=0.05, epochs=2, batch_size=8)
initialize, train, evaluate = dropping.initialize, dropping.train, dropping.evaluate
scaffold, ditto = dropping.scaffold, dropping.ditto
