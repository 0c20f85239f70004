"""A site's training loss while it trains: streamed to the server, and watched for divergence."""

import math
import time

import torch
from torch import Tensor

from prefect_federated.errors import UpdateRejected
from prefect_federated.executors import Site

TELL_EVERY_S = 1.0
"""Seconds between two points of the curve within an epoch."""


class LossCurve:
    """The sum of a training's losses, kept on the device, and told as means.

    Reading a number from a GPU waits for all that it has to compute, so that is done at the end of
    an epoch and about once a second, not in each step.

    Args:
        site: Whom it is told to.
        device: Where the losses are.
        epochs: Epochs in all.
        steps: Steps an epoch, if that is known; else the server hears of whole epochs only.
        label: Begins the curve's name, `train_loss`, and the unit of the progress.
    """

    def __init__(
        self, site: Site, device: torch.device, epochs: int, steps: int | None, label: str = ""
    ) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which Apple's has not
        self.rows = 0
        self.steps = 0
        self._sum = torch.zeros((), dtype=dtype, device=device)
        self._site = site
        self._epochs = epochs
        self._steps_per_epoch = steps
        self._before = max(site.round - 1, 0) * epochs * (steps or 0)
        self._label = label
        self._told = (0.0, 0)
        self._due = time.monotonic() + TELL_EVERY_S

    def add(self, loss: Tensor, rows: int) -> None:
        """Adds one step's mean loss over so many examples; tells the curve if it is time to.

        Raises:
            UpdateRejected: it is time to, and the loss is not finite any more.
        """
        self._sum.add_(loss.detach(), alpha=rows)
        self.rows += rows
        self.steps += 1
        if time.monotonic() >= self._due:
            self.tell(self._epochs_done())

    def tell(self, epochs_done: float | None) -> float:
        """Tells the mean loss since the last time; returns the mean of all.

        Raises:
            UpdateRejected: the loss is not finite any more.
        """
        total, rows = self._sum.item(), self.rows
        sum_told, rows_told = self._told
        if rows > rows_told:
            mean = (total - sum_told) / (rows - rows_told)
            self._site.log_metrics({f"{self._label}train_loss": mean}, self._before + self.steps)
        if epochs_done is not None:
            unit = f"{self._label}epoch".replace("_", " ")
            self._site.progress(min(epochs_done, self._epochs), self._epochs, unit)
        if not math.isfinite(total):
            raise UpdateRejected(
                f"round {self._site.round}, site {self._site.name!r}: the {self._label}training "
                f"loss became {total} after {self.steps} steps. Lower lr, or look for values in "
                "the site's data that are not finite."
            )
        self._told = (total, rows)
        self._due = time.monotonic() + TELL_EVERY_S
        return total / rows if rows else 0.0

    def _epochs_done(self) -> float | None:
        return self.steps / self._steps_per_epoch if self._steps_per_epoch else None
