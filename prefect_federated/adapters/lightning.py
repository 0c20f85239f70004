"""Lightning in a federation: a script that calls `trainer.fit` goes on calling it, once a round.

::

    @executor
    def main() -> None:
        module, trainer = Network(), Trainer(max_epochs=1)
        for task in rounds(trainer, module):
            trainer.fit(module, Images(task.site.data))

Everything else in the script stays as it is. Installed with the extra `lightning`; who writes
`import lightning` may pass that package's trainer and modules too.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sized

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from prefect_federated.adapters.torch import buffer_names, load_tensors, tensors_of
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, SiteTask, executor, site_tasks

__all__ = ["executor", "rounds", "training_examples"]

_VALIDATION = re.compile(r"^(val|valid|validation)[_/]")


def training_examples(trainer: Trainer) -> float:
    """Returns the number of examples in the data set that the trainer has trained on.

    Raises:
        ConfigurationError: it trained on something else than one data set with a length.
    """
    loader = trainer.train_dataloader
    examples = loader.dataset if isinstance(loader, DataLoader) else None
    if not isinstance(examples, Sized):
        raise ConfigurationError(
            f"the training data is a {type(loader).__name__} without a number of examples, by "
            "which this site's update is weighted. Pass rounds(..., weight=lambda trainer: n)."
        )
    return float(len(examples))


def rounds(
    trainer: Trainer,
    module: LightningModule,
    weight: Callable[[Trainer], float] = training_examples,
) -> Iterator[SiteTask]:
    """Yields the site task of each round, for whose model the loop's body calls `trainer.fit`.

    Before the body runs, `module` holds the received model, and the trainer may run as many epochs
    or steps as it was built for. `fit` first measures the received model on all validation data,
    then trains; what the module logs, and how far the trainer has come, goes to the server
    meanwhile. After the body the module's tensors are sent, with the validation's metrics under
    names with `val_` and what the training has logged under its own names. Optimizers begin anew
    each round; `trainer.global_step` and the state of callbacks go on.

    Args:
        trainer: A trainer in one process.
        module: The module, built alike at every site.
        weight: The trainer after `fit` -> the update's weight in the mean.

    Raises:
        ConfigurationError: the received model does not fit the module, the body did not call
            `trainer.fit`, or the trainer runs in several processes.
    """
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"the trainer runs in {trainer.world_size} processes, which would each talk to the "
            "server. Build it with devices=1."
        )
    listener = _Listener(trainer)
    trainer.callbacks.append(listener)
    trainer.num_sanity_val_steps = math.inf  # all of the validation data, before each training
    for task in site_tasks(initial=tensors_of(module)):
        load_tensors(module, task.model)
        listener.begin(task.site)
        yield task
        if task.is_answered:
            continue
        if not listener.has_trained:
            raise ConfigurationError(
                f"round {task.round}, site {task.site.name!r}: the body of the loop over rounds() "
                "did not run trainer.fit() to its end. Call it once in each."
            )
        task.reply(
            tensors_of(module),
            weight=weight(trainer),
            metrics=listener.metrics(),
            metrics_weight=_validation_examples(trainer),
            buffers=buffer_names(module),
        )


def _validation_examples(trainer: Trainer) -> float | None:
    """Returns the number of examples that the received model was measured on, where it is known."""
    loader = trainer.val_dataloaders
    examples = loader.dataset if isinstance(loader, DataLoader) else None
    return float(len(examples)) or None if isinstance(examples, Sized) else None


class _Listener(Callback):  # type: ignore[misc]
    """Hears what a trainer does in one round, and tells the server."""

    def __init__(self, trainer: Trainer) -> None:
        self.has_trained = False
        self._trainer = trainer
        self._epochs, self._steps = trainer.max_epochs, trainer.max_steps
        self._first_epoch = self._first_step = 0
        self._received: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._site: Site | None = None

    def begin(self, site: Site) -> None:
        """Lets the trainer run as long again as it was built for."""
        trainer = self._trainer
        self.has_trained = False
        self._site, self._received, self._told = site, {}, {}
        self._first_epoch, self._first_step = trainer.current_epoch, trainer.global_step
        if self._epochs is not None and self._epochs >= 0:
            trainer.fit_loop.max_epochs = self._first_epoch + self._epochs
        if self._steps >= 0:
            trainer.fit_loop.epoch_loop.max_steps = self._first_step + self._steps

    def metrics(self) -> dict[str, float]:
        """Returns those of the received model, and the last ones of the training."""
        before = {f"val_{_VALIDATION.sub('', name)}": x for name, x in self._received.items()}
        after = _numbers(self._trainer.callback_metrics)
        return {**{n: x for n, x in after.items() if n not in self._received}, **before}

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = _numbers(trainer.callback_metrics)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._tell((batch_idx + 1) / trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(1.0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_trained = True

    def _tell(self, part_of_epoch: float) -> None:
        trainer = self._trainer
        assert self._site is not None
        now = _numbers(trainer.callback_metrics)  # with what earlier epochs have logged
        new = {name: value for name, value in now.items() if self._told.get(name) != value}
        self._site.log_metrics(new, step=trainer.global_step)
        self._told = now
        if self._steps > 0:
            self._site.progress(trainer.global_step - self._first_step, self._steps, "step")
        elif self._epochs and self._epochs > 0:
            done = trainer.current_epoch - self._first_epoch + part_of_epoch
            self._site.progress(min(done, self._epochs), self._epochs)


def _numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns what a module has logged, all of it single numbers."""
    return {name: float(value) for name, value in metrics.items()}
