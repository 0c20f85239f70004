"""Local training, written once: what FedAvg, FedProx, SCAFFOLD and Ditto do at a site.

They differ in what they add to the gradient between the backward pass and the optimizer's step: a
`Correction`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it: here no round waits for that
from torch import Tensor, nn

from prefect_federated.adapters.torch.examples import (
    Examples,
    TrainTest,
    batches,
    batches_per_pass,
)
from prefect_federated.adapters.torch.hardware import device_of, loss_scaler, mixed_precision
from prefect_federated.adapters.torch.loss_curve import LossCurve
from prefect_federated.adapters.torch.randomness import RandomStream
from prefect_federated.adapters.torch.settings import Settings, set_options
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site

_MEASURED_AT_ONCE = 4
"""Batches that are measured together: without gradients they need less memory than one to train."""

Correction: TypeAlias = Callable[[], None]
"""Changes the gradients of the parameters in place, after the backward pass of each local step."""


class Trained(NamedTuple):
    """What local training came to: mean loss of all steps, examples, and steps that were taken."""

    loss: float
    rows: int
    steps: int


class Measured(NamedTuple):
    """Mean metrics over the test examples, and their number."""

    metrics: dict[str, float]
    rows: int


class _Pass(NamedTuple):
    """A batch after the forward pass; the loss is its mean."""

    outputs: Tensor
    targets: Tensor
    loss: Tensor


@dataclass(frozen=True)
class LocalModel:
    """A module with all that one site task trains and measures it by.

    Args:
        site: The site, with the task's round and config.
        module: The module, on its device.
        forward: The module's forward pass, compiled or not.
        examples: The site's examples.
        loss: Outputs and targets -> mean loss.
        optimizer: Parameters and learning rate -> optimizer.
        metrics: Outputs and targets of a test batch -> name -> mean.
        settings: What the job's config has set.
    """

    site: Site
    module: nn.Module
    forward: Callable[[Tensor], Any]
    examples: TrainTest
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    metrics: Callable[[Tensor, Tensor], Mapping[str, float]]
    settings: Settings

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Returns an optimizer of the module's parameters that has taken no step yet.

        Raises:
            ConfigurationError: the config sets an option that this optimizer has not.
        """
        optimizer = self.optimizer(self.module.parameters(), self.settings.lr)
        set_options(optimizer, self.site)
        return optimizer

    def fit(
        self, correct: Correction | None = None, epochs: int | None = None, label: str = ""
    ) -> Trained:
        """Trains the module in place, and streams its loss.

        Args:
            correct: Called in each step between the backward pass and the optimizer's step.
            epochs: Passes over the training examples; those of the settings if None.
            label: Begins the names of the curve and of the progress.

        Raises:
            ConfigurationError: there are no training examples, or a single one for a batch norm.
            UpdateRejected: the loss is not finite any more.
        """
        epochs = epochs or self.settings.epochs
        device = device_of(self.module)
        optimizer, scaler = self.fresh_optimizer(), loss_scaler(self.settings.precision, device)
        taken: list[None] = []  # float16's scaler leaves out steps whose gradients overflow
        optimizer.register_step_post_hook(lambda *_: taken.append(None))
        curve = LossCurve(self.site, device, epochs, self._steps_per_epoch(), label)
        seed, train = self._seed(0), self.examples.train
        order, stream = torch.Generator().manual_seed(seed), RandomStream(seed, device)
        self.module.train()
        for epoch in range(1, epochs + 1):
            for _, targets, loss in self._passes(train, order, stream):
                optimizer.zero_grad()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if correct is not None:
                    scaler.unscale_(optimizer)
                    correct()
                scaler.step(optimizer)
                scaler.update()
                curve.add(loss, len(targets))
            mean_loss = curve.tell(epoch)
        if not curve.rows:
            raise ConfigurationError(f"site {self.site.name!r} has no training examples.")
        return Trained(mean_loss, curve.rows // epochs, len(taken))

    def measure(self, label: str = "") -> Measured:
        """Returns the mean loss and metrics over all test examples, under names with a label."""
        sums: dict[str, float] = {}
        rows = 0
        stream = RandomStream(self._seed(1), device_of(self.module))
        self.module.eval()
        with torch.no_grad():
            for outputs, targets, loss in self._passes(self.examples.test, None, stream):
                if self.settings.precision != "float32":  # which NumPy, say, cannot count in
                    outputs = outputs.float()
                means = {"loss": loss.item(), **self.metrics(outputs, targets)}
                for name, mean in means.items():
                    sums[label + name] = sums.get(label + name, 0.0) + mean * len(targets)
                rows += len(targets)
        return Measured({name: total / rows for name, total in sums.items()}, rows)

    def gradient(self) -> dict[nn.Parameter, Tensor]:
        """Returns the gradient of the mean loss over all training examples, by parameter.

        Computed in the module's own dtypes, in one pass; the module, its buffers too, stays as it
        is. Parameters that the loss does not depend on have gradient 0.
        """
        before = [buffer.clone() for buffer in self.module.buffers()]
        stream = RandomStream(self._seed(2), device_of(self.module))
        rows = 0
        self.module.train()
        for _, targets, loss in self._passes(self.examples.train, None, stream, "float32"):
            (loss * len(targets)).backward()  # type: ignore[no-untyped-call]
            rows += len(targets)
        parameters = list(trained_parameters(self.module).values())
        means = [each / max(rows, 1) for each in gradients_of(parameters)]
        self.module.zero_grad()
        with torch.no_grad():
            for buffer, kept in zip(self.module.buffers(), before, strict=True):
                buffer.copy_(kept)
        return dict(zip(parameters, means, strict=True))

    def _passes(
        self,
        examples: Examples,
        order: torch.Generator | None,
        stream: RandomStream,
        precision: str | None = None,
    ) -> Iterator[_Pass]:
        """Yields each batch after its forward pass; random layers draw from the task's stream.

        Once a step draws nothing, the rest of the pass goes without the stream, so that sites in
        threads do not wait for each other.
        """
        device = device_of(self.module)
        precision = precision or self.settings.precision
        has_norm = any(isinstance(part, _BATCH_NORM) for part in self.module.modules())
        size = self.settings.batch_size
        if not torch.is_grad_enabled():
            size *= _MEASURED_AT_ONCE
        with stream:  # a loader draws a seed when it begins
            upcoming: Iterator[tuple[Tensor, Tensor]] = iter(
                batches(examples, size, order, pairs_at_least=has_norm and self.module.training)
            )
        is_random = True
        while True:
            with stream if is_random else nullcontext():
                batch = next(upcoming, None)
                if batch is None:
                    return
                inputs, targets = (part.to(device, non_blocking=True) for part in batch)
                if len(targets):
                    with mixed_precision(precision, device):
                        outputs, loss = self._forward(inputs, targets)
            is_random = is_random and stream.has_drawn
            if len(targets):
                yield _Pass(outputs, targets, loss)

    def _forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        try:
            outputs = self.forward(inputs)
        except ValueError as error:
            if len(targets) > 1 or not self.module.training:
                raise
            raise ConfigurationError(
                f"site {self.site.name!r}: a training batch has one example, and a layer needs "
                f"more: {error} Give the site more examples, or its DataLoader drop_last=True."
            ) from error
        return outputs, self.loss(outputs, targets)

    def _steps_per_epoch(self) -> int | None:
        return batches_per_pass(self.examples.train, self.settings.batch_size)

    def _seed(self, purpose: int) -> int:
        """Returns the seed of one purpose in this task; training, the first, has the plain one."""
        parts = [self.site.seed, self.site.round, *([purpose] if purpose else [])]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])


_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns a module's parameters that training may change, tied ones once."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns the parameters' gradients, for changes in place; 0 where the loss has given none."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients
