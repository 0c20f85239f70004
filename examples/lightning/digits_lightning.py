"""Handwritten digits with Lightning: a module, its data, and a script that trains it.

README.md shows which lines make it federated. A site's data folder holds `digits.npz`, see
../digits/prepare.py.
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from prefect_federated.adapters.lightning import executor, rounds


class Network(pl.LightningModule):
    """Two convolutions, then one layer over their 4 x 4 maps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Returns the loss of one batch."""
        images, labels = batch
        loss = functional.cross_entropy(self.layers(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Logs loss and accuracy of one batch."""
        images, labels = batch
        scores = self.layers(images)
        self.log("val_loss", functional.cross_entropy(scores, labels))
        self.log("val_accuracy", (scores.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Digits(pl.LightningDataModule):
    """The images in a folder's `digits.npz`, `(n, 1, 8, 8)` in 0 to 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        with np.load(folder / "digits.npz", allow_pickle=False) as arrays:
            x = {part: torch.from_numpy(arrays[f"{part}_x"]) for part in ("train", "test")}
            y = {part: torch.from_numpy(arrays[f"{part}_y"]) for part in ("train", "test")}
        self.own = TensorDataset(x["train"], y["train"])
        self.held_out = TensorDataset(x["test"], y["test"])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Returns shuffled batches of 16."""
        return DataLoader(self.own, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Returns batches for measuring."""
        return DataLoader(self.held_out, batch_size=128)


@executor
def main() -> None:
    """Trains the network."""
    network = Network()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    for task in rounds(trainer, network):
        trainer.fit(network, Digits(task.site.data))
