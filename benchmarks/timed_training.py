"""The executor of `benchmarks.training_share`: a small network, random images, its loop timed."""

import functools
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site

BATCH = 32
_TEST_SHARE = 0.1

loop_s: list[float] = []
"""Seconds of each training loop in this process: from its optimizer's making to its last step."""


class TimedSgd(torch.optim.SGD):
    """Plain SGD that notes how long its loop runs."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self._began = time.perf_counter()
        loop_s.append(0.0)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes a step."""
        loss: float | None = super().step(closure)
        loop_s[-1] = time.perf_counter() - self._began
        return loss


def network() -> nn.Module:
    """Returns two convolutions and a dense layer, for images of 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


@functools.cache
def random_images(number: int) -> tuple[Tensor, Tensor]:
    """Returns images `(number, 1, 28, 28)` and classes."""
    order = torch.Generator().manual_seed(0)
    return (
        torch.rand((number, 1, 28, 28), generator=order),
        torch.randint(10, (number,), generator=order),
    )


def build(site: Site) -> nn.Module:
    """Returns the untrained network."""
    return network()


def read(site: Site) -> TrainTest:
    """Returns as many images as the job's config says."""
    train = int(site.number("images", BATCH))
    return TrainTest(random_images(train), random_images(max(round(train * _TEST_SHARE), 1)))


sites = TorchExecutor(build, read, optimizer=TimedSgd, lr=0.01, batch_size=BATCH)
