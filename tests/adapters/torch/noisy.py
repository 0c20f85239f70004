"""A small network with dropout, batch norm and augmentation, as the executor of a job."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site

Pair = tuple[Tensor, Tensor]


class Augmented(Dataset[Pair]):
    """Rows with noise that is drawn anew at each look, by torch's own generator."""

    def __init__(self, seed: int, rows: int = 30) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, 1, 8, 8, generator=generator)
        self.y = torch.randint(0, 4, (rows,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> Pair:
        return self.x[row] + 0.1 * torch.randn(1, 8, 8), self.y[row]


def build(site: Site) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, kernel_size=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 36, 4),
    )


noisy = TorchExecutor(
    build,
    lambda site: TrainTest(Augmented(site.seed), Augmented(0)),
    batch_size=8,
    epochs=2,
)
