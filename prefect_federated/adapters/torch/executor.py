"""The executor: what a data scientist gives, and the site tasks that it answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefect_federated.adapters.torch import ditto, fedprox, scaffold
from prefect_federated.adapters.torch.examples import TrainTest
from prefect_federated.adapters.torch.hardware import chosen_device, compiled
from prefect_federated.adapters.torch.randomness import shared_generators
from prefect_federated.adapters.torch.settings import Settings, whole
from prefect_federated.adapters.torch.tensors import buffer_names, load_tensors, tensors_of
from prefect_federated.adapters.torch.training import LocalModel
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, TaskFunction, executor
from prefect_federated.messages import Tensors, Update


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
    return {"accuracy": right.float().mean(dtype=torch.float64).item()}


@dataclass(frozen=True)
class TorchExecutor:
    """Executors that train and evaluate a `torch.nn.Module` on a site's own examples.

    The job's config may set `lr`, `epochs`, `batch_size`, `device`, `precision` and `compile`; the
    optimizer's `momentum` and `weight_decay`; `mu` (FedProx), `option` (SCAFFOLD),
    `ditto_lambda` and `ditto_epochs` (Ditto); `seed` (of the initial model) and `threads`.

    The same seed gives the same update, bit for bit, on one kind of machine: layers that draw from
    torch's generators (dropout) get a stream of the task's own, also where a simulator trains
    several sites in threads. Sums over many numbers depend on torch's number of threads, which
    is that of the processors unless `threads` says otherwise; and on a GPU see `hardware`.

    Args:
        build: Returns the untrained module; the same names, shapes and dtypes at every site.
        data: Returns the site's examples. Called in each site task: cache what is slow to read.
        loss: Outputs and targets of a batch -> mean loss over the batch, one number.
        optimizer: Parameters and learning rate -> a fresh optimizer, for one site task.
        metrics: Outputs and targets of a test batch -> name -> mean over the batch.
        lr: Learning rate, 0 or more.
        epochs: Passes over the training examples a round, at least 1.
        batch_size: Examples a step, and a quarter of those that are measured at once; 0 for all. A
            `DataLoader` keeps its own. With batch normalization a last batch of one example joins
            the one before.
        device: "auto" (where `build` puts the module), "cpu", "cuda" or "cuda:1".
        precision: "float32" (the module's own dtypes), or mixed precision with "bfloat16" or
            "float16": the parameters stay what they are, and travel so.
        compile: Whether the forward pass goes through `torch.compile`; tensors keep their names.
    """

    build: Callable[[Site], nn.Module]
    data: Callable[[Site], TrainTest]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = torch.optim.SGD
    metrics: Callable[[Tensor, Tensor], Mapping[str, float]] = accuracy
    lr: float = 0.1
    epochs: int = 1
    batch_size: int = 32
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False

    def federated_executors(self) -> Mapping[str, TaskFunction]:
        """Returns kind of site task -> function."""
        return {
            "initialize": self.initialize,
            "train": self.train,
            "evaluate": self.evaluate,
            "scaffold": self.scaffold,
            "ditto": self.ditto,
        }

    @executor
    def initialize(self, model: Tensors, site: Site) -> Update:
        """Returns the untrained module's tensors, the same at every site of a job."""
        module = self._module(site)
        return Update(tensors_of(module), buffers=buffer_names(module))

    @executor
    def train(self, model: Tensors, site: Site) -> Update:
        """Returns the tensors trained from `model`, weighted by the number of training examples.

        The metrics `val_...` are those of `model` as it was received, on the site's test examples
        (their number is `metrics_weight`); `train_loss` is the mean over the training steps. With
        `mu` above 0 in the config this is FedProx.

        Raises:
            ConfigurationError: `model` does not fit the module, there are no training examples, or
                a setting is out of range.
            UpdateRejected: the loss is not finite any more.
        """
        return fedprox.train(self._local(site), model)

    @executor
    def evaluate(self, model: Tensors, site: Site) -> Update:
        """Returns no tensors, but the metrics of `model` on the site's test examples.

        Raises:
            ConfigurationError: `model` does not fit the module, or there are no test examples.
        """
        local = self._local(site)
        load_tensors(local.module, model)
        measured = local.measure()
        if not measured.rows:
            raise ConfigurationError(f"site {site.name!r} has no test examples to evaluate on.")
        return Update(weight=measured.rows, metrics=measured.metrics)

    @executor
    def scaffold(self, model: Tensors, site: Site) -> Update:
        """Returns what `train` does, corrected by control variates; see `control_variates`.

        Args:
            model: The model, and the server's control variate under names with a prefix.
            site: The site; its own control variate is kept in `site.state`.

        Raises:
            ConfigurationError: as `train`; the site's control variate is not there any more; or the
                optimizer is not plain SGD and `option` is 2.
            UpdateRejected: the loss is not finite any more.
        """
        return scaffold.scaffold(self._local(site), model)

    @executor
    def ditto(self, model: Tensors, site: Site) -> Update:
        """Returns what `train` does, and trains the site's personal model, which stays there.

        Raises:
            ConfigurationError: as `train`; or the personal model does not fit the module any more.
            UpdateRejected: the loss is not finite any more.
        """
        return ditto.ditto(self._local(site), model)

    def _local(self, site: Site) -> LocalModel:
        defaults = Settings(
            self.lr, self.epochs, self.batch_size, self.device, self.precision, self.compile
        )
        settings = defaults.of(site)
        module = self._module(site)
        module.to(chosen_device(settings.device, module))
        return LocalModel(
            site=site,
            module=module,
            forward=compiled(module) if settings.compile else module,
            examples=self.data(site),
            loss=self.loss,
            optimizer=self.optimizer,
            metrics=self.metrics,
            settings=settings,
        )

    def _module(self, site: Site) -> nn.Module:
        if "threads" in site.config:
            torch.set_num_threads(whole(site, "threads", 1, at_least=1))
        with shared_generators, torch.random.fork_rng(devices=[]):
            torch.manual_seed(whole(site, "seed", 0, at_least=0))
            return self.build(site)
