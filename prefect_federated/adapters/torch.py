"""PyTorch modules as executors: a module, a site's data and a plain training loop.

`TorchExecutor` answers the site tasks `initialize`, `train` and `evaluate`. Who has a training loop
already needs only `tensors_of` and `load_tensors`. Installed with the extra `torch`; nothing else
in the package imports torch.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import Site, TaskFunction, executor
from prefect_federated.messages import Tensors, Update

Examples: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]"
"""Inputs and targets as two tensors, a dataset of such pairs, or a loader of batches of them."""

_building = threading.Lock()  # torch's default generator is one for all threads


@dataclass(frozen=True)
class TrainTest:
    """A site's own examples: those it trains on, and those it only measures on."""

    train: Examples
    test: Examples


def accuracy(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Returns the share of right predictions of one batch, as the metric `accuracy`.

    Args:
        outputs: Class scores `(n, n_classes, ...)`, or logits of a yes/no question in the shape
            of `targets`.
        targets: Class numbers `(n, ...)`, or 0 and 1.
    """
    if outputs.shape == targets.shape:
        right = (outputs > 0) == (targets > 0.5)
    else:
        right = outputs.argmax(dim=1) == targets
    return {"accuracy": right.double().mean().item()}


@dataclass(frozen=True)
class TorchExecutor:
    """Executors that train and evaluate a `torch.nn.Module` on a site's own examples.

    The job's config may set `lr`, `epochs`, `batch_size`, `seed` (of the initial model) and
    `threads` (of torch, in this process). Batches go to the device that `build` put the module on.
    The same seed gives the same update, except that random layers such as dropout draw from
    torch's one generator: where a simulator trains several sites in threads, those draws mix.

    Args:
        build: Returns the untrained module; the same names, shapes and dtypes at every site.
        data: Returns the site's examples. Called in each site task: cache what is slow to read.
        loss: Outputs and targets of a batch -> mean loss over the batch, one number.
        optimizer: Parameters and learning rate -> a fresh optimizer, for one site task.
        metrics: Outputs and targets of a test batch -> name -> mean over the batch.
        lr: Learning rate, above 0.
        epochs: Passes over the training examples a round, at least 1.
        batch_size: Examples a step; 0 for all at once. A `DataLoader` keeps its own.
    """

    build: Callable[[Site], nn.Module]
    data: Callable[[Site], TrainTest]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = torch.optim.SGD
    metrics: Callable[[Tensor, Tensor], Mapping[str, float]] = accuracy
    lr: float = 0.1
    epochs: int = 1
    batch_size: int = 32

    def federated_executors(self) -> Mapping[str, TaskFunction]:
        """Returns kind of site task -> function."""
        return {"initialize": self.initialize, "train": self.train, "evaluate": self.evaluate}

    @executor
    def initialize(self, model: Tensors, site: Site) -> Update:
        """Returns the untrained module's tensors, the same at every site of a job."""
        return Update(tensors_of(self._module(site)))

    @executor
    def train(self, model: Tensors, site: Site) -> Update:
        """Returns the tensors trained from `model`, weighted by the number of training examples.

        The metrics are those of `model` as it was received, on the site's test examples (their
        number is `metrics_weight`), and `train_loss`, the mean over the training steps.

        Raises:
            ConfigurationError: `model` does not fit the module, there are no training examples, or
                a setting is out of range.
            UpdateRejected: the loss is not finite any more.
        """
        module = self._module(site)
        load_tensors(module, model)
        examples = self.data(site)
        metrics, test_rows = self._measure(module, examples.test, site)
        train_loss, train_rows = self._fit(module, examples.train, site)
        return Update(
            tensors_of(module),
            weight=train_rows,
            metrics={**metrics, "train_loss": train_loss},
            metrics_weight=test_rows or None,
        )

    @executor
    def evaluate(self, model: Tensors, site: Site) -> Update:
        """Returns no tensors, but the metrics of `model` on the site's test examples.

        Raises:
            ConfigurationError: `model` does not fit the module, or there are no test examples.
        """
        module = self._module(site)
        load_tensors(module, model)
        metrics, rows = self._measure(module, self.data(site).test, site)
        if not rows:
            raise ConfigurationError(f"site {site.name!r} has no test examples to evaluate on.")
        return Update(weight=rows, metrics=metrics)

    def _module(self, site: Site) -> nn.Module:
        if "threads" in site.config:
            torch.set_num_threads(_whole(site, "threads", 1, at_least=1))
        with _building, torch.random.fork_rng(devices=[]):
            torch.manual_seed(_whole(site, "seed", 0, at_least=0))
            return self.build(site)

    def _fit(self, module: nn.Module, train: Examples, site: Site) -> tuple[float, int]:
        """Trains in place; returns the mean loss of all steps and the number of examples."""
        epochs = _whole(site, "epochs", self.epochs, at_least=1)
        batch_size = _whole(site, "batch_size", self.batch_size, at_least=0)
        seed = int(np.random.SeedSequence([site.seed, site.round]).generate_state(1)[0])
        optimizer = self.optimizer(module.parameters(), site.number("lr", self.lr))
        order = torch.Generator().manual_seed(seed)
        loss_sum, rows = 0.0, 0
        module.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for inputs, targets in _batches(train, batch_size, _device(module), order):
                    optimizer.zero_grad()
                    loss = self.loss(module(inputs), targets)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    loss_sum += loss.item() * len(targets)
                    rows += len(targets)
        if not rows:
            raise ConfigurationError(f"site {site.name!r} has no training examples.")
        if not np.isfinite(loss_sum):
            raise UpdateRejected(
                f"round {site.round}, site {site.name!r}: the training loss became {loss_sum} "
                f"with lr={site.number('lr', self.lr)}. Lower lr, or look for values in the site's "
                "data that are not finite."
            )
        return loss_sum / rows, rows // epochs

    def _measure(
        self, module: nn.Module, test: Examples, site: Site
    ) -> tuple[dict[str, float], int]:
        """Returns the mean loss and metrics over all test examples, and their number."""
        batch_size = _whole(site, "batch_size", self.batch_size, at_least=0)
        sums: dict[str, float] = {}
        rows = 0
        module.eval()
        with torch.no_grad():
            for inputs, targets in _batches(test, batch_size, _device(module)):
                outputs = module(inputs)
                means = {"loss": self.loss(outputs, targets).item()}
                means.update(self.metrics(outputs, targets))
                for name, mean in means.items():
                    sums[name] = sums.get(name, 0.0) + mean * len(targets)
                rows += len(targets)
        return {name: total / rows for name, total in sums.items()}, rows


def tensors_of(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Returns copies of a module's parameters and buffers, named as in its `state_dict()`.

    Weights that are tied appear under each of their names. NumPy has no bfloat16, so such a tensor
    travels as float32, which holds each of its values exactly; `load_tensors` rounds to the
    nearest bfloat16, which gives the same value back.

    Raises:
        ConfigurationError: the module keeps state that is no tensor, or of a dtype that NumPy
            does not know.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        dtype = _travel_dtype(name, value)
        tensors[name] = value.detach().to("cpu", dtype).numpy().copy()
    return tensors


def load_tensors(module: nn.Module, tensors: Tensors) -> None:
    """Copies tensors by name into a module's parameters and buffers; the arrays are only read.

    Raises:
        ConfigurationError: names, shapes or dtypes are not those of `tensors_of(module)`; the
            module is left as it was.
    """
    own = module.state_dict()
    wrong = [f"{name!r} is not in this module" for name in tensors if name not in own]
    for name, value in own.items():
        expected = torch.empty(0, dtype=_travel_dtype(name, value)).numpy().dtype
        if name not in tensors:
            wrong.append(f"{name!r} is missing")
        elif tensors[name].shape != value.shape or tensors[name].dtype != expected:
            wrong.append(
                f"{name!r} is {tensors[name].dtype} {tensors[name].shape}, in this module "
                f"{expected} {tuple(value.shape)}"
            )
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigurationError(
            f"the model does not fit the {type(module).__name__} built here: "
            f"{'; '.join(wrong[:5])}{more}. Build the same module at every site, and start the "
            "job from a model of that module."
        )
    # torch.tensor copies, which a read-only array allows, and load_state_dict casts.
    module.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})


def _travel_dtype(name: str, value: object) -> torch.dtype:
    """Returns the dtype in which one entry of a `state_dict()` becomes an array."""
    if not isinstance(value, Tensor):
        raise ConfigurationError(
            f"the module's state {name!r} is a {type(value).__name__}; only tensors travel. Keep "
            "it as a buffer, or outside the module's state."
        )
    if value.dtype == torch.bfloat16:
        return torch.float32
    try:
        torch.empty(0, dtype=value.dtype).numpy()
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"the module's tensor {name!r} is {value.dtype}, which NumPy does not know. Train in "
            "another dtype, such as torch.float32 or torch.bfloat16."
        ) from error
    return value.dtype


def _batches(
    examples: Examples, size: int, device: torch.device, order: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of inputs and targets on a device, shuffled where an order is given."""
    batches: Iterable[tuple[Tensor, Tensor]]
    if isinstance(examples, DataLoader):
        batches = examples
    elif isinstance(examples, Dataset):
        size = size or len(examples)  # type: ignore[arg-type]
        batches = DataLoader(examples, size, shuffle=order is not None, generator=order)
    else:
        x, y = examples
        index = torch.arange(len(y)) if order is None else torch.randperm(len(y), generator=order)
        batches = ((x[rows], y[rows]) for rows in torch.split(index, size or max(len(y), 1)))
    for inputs, targets in batches:
        if len(targets):
            yield inputs.to(device), targets.to(device)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters(), torch.empty(0)).device


def _whole(site: Site, key: str, default: int, *, at_least: int) -> int:
    value = site.number(key, default)
    if value != int(value) or value < at_least:
        raise ConfigurationError(
            f"config {key!r} is {value}; it must be a whole number, {at_least} or more."
        )
    return int(value)
