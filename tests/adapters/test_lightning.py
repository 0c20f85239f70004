"""A trainer in the loop form: what the server gets, and what is refused."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from prefect_federated.adapters.lightning import rounds
from prefect_federated.adapters.torch import tensors_of
from prefect_federated.errors import ConfigurationError, JobEnded
from prefect_federated.executors import LoadedExecutor, ReceivedTask, Site, serve
from prefect_federated.messages import Note, Tensors, Update

STARTS = {"layer.weight": np.array([[0.0]], np.float32)}
X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
Y = 2 * X


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # Lightning has advice on loaders, and torch on Lightning
        warnings.simplefilter("ignore")
        yield


class Line(pl.LightningModule):  # type: ignore[misc]
    """Fits `y = w x` by full-batch gradient descent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("valid/loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))
        self.log("val_slope", self.layer.weight.mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Server:
    """A site's link whose controller asks for rounds, each from the same model or the last one."""

    def __init__(self, count: int) -> None:
        self.model: Tensors = STARTS
        self.updates: list[Update] = []
        self.notes: list[Note] = []
        self.failures: list[BaseException] = []
        self._left = count

    def attach(self, kinds: Sequence[str]) -> None:
        assert set(kinds) == {"train", "initialize"}

    def receive(self) -> ReceivedTask:
        if not self._left:
            raise JobEnded("completed", "all rounds are done")
        self._left -= 1
        number = len(self.updates) + 1
        return ReceivedTask(f"1.{number}", "train", number, self.model, stream=self)

    def reply(self, task: ReceivedTask, update: Update) -> None:
        self.updates.append(update)
        self.model = update.tensors

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        self.failures.append(error)

    def tell(self, note: Note) -> None:
        self.notes.append(note)


def run(server: Server, loop: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", loop=loop), Site("here", tmp_path, tmp_path), server)


def trainer(**options: object) -> pl.Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return pl.Trainer(accelerator="cpu", **{**quiet, "log_every_n_steps": 1, **options})


def loader(size: int = 4) -> "DataLoader[tuple[Tensor, ...]]":
    return DataLoader(TensorDataset(X, Y), batch_size=size)


def slope_after(steps: int, start: float = 0.0) -> float:
    """Full-batch gradient descent on the mean of (w x - 2 x)^2, whose mean of x^2 is 7.5."""
    return 2 - (2 - start) * (1 - 0.01 * 2 * 7.5) ** steps


def test_each_round_trains_as_long_as_the_trainer_was_built_for(tmp_path: Path) -> None:
    server = Server(3)

    def main() -> None:
        line, own = Line(), trainer(max_epochs=2)
        for _task in rounds(own, line):
            own.fit(line, loader(), DataLoader(TensorDataset(X[:3], Y[:3])))

    run(server, main, tmp_path)
    slopes = [float(update.tensors["layer.weight"].item()) for update in server.updates]
    assert slopes == pytest.approx([slope_after(n) for n in (2, 4, 6)], rel=1e-6)
    assert {(update.weight, update.metrics_weight) for update in server.updates} == {(4, 3)}


def test_steps_bound_a_round_where_the_trainer_counts_steps(tmp_path: Path) -> None:
    server = Server(2)

    def main() -> None:
        line, own = Line(), trainer(max_steps=3, max_epochs=-1)
        for _task in rounds(own, line):
            own.fit(line, loader())

    run(server, main, tmp_path)
    assert server.updates[-1].tensors["layer.weight"].item() == pytest.approx(slope_after(6))
    done = [note.progress for note in server.notes if note.progress and note.round == 2]
    assert done[-1] == (3.0, 3.0, "step")


def test_the_received_model_is_measured_before_training_on_all_validation_data(
    tmp_path: Path,
) -> None:
    server = Server(2)

    def main() -> None:
        line, own = Line(), trainer(max_epochs=1)
        for _task in rounds(own, line):
            own.fit(line, loader(), loader(size=1))  # four batches, of which Lightning checks two

    run(server, main, tmp_path)
    first, second = (update.metrics for update in server.updates)
    assert set(first) == {"val_loss", "val_slope", "train_loss"}
    assert first["val_slope"] == 0
    assert first["val_loss"] == pytest.approx(4 * 7.5)
    assert first["train_loss"] == pytest.approx(4 * 7.5)
    assert second["val_slope"] == pytest.approx(slope_after(1))


def test_what_the_module_logs_is_streamed_with_its_progress(tmp_path: Path) -> None:
    server = Server(2)

    def main() -> None:
        line, own = Line(), trainer(max_epochs=2)
        for _task in rounds(own, line):
            own.fit(line, loader(size=2), loader())

    run(server, main, tmp_path)
    assert {note.round for note in server.notes} == {1, 2}
    slopes = [n.metrics["val_slope"] for n in server.notes if "val_slope" in n.metrics]
    assert len(slopes) == 4  # once an epoch
    assert slopes == sorted(set(slopes))
    steps = [n.step for n in server.notes if "val_slope" in n.metrics]
    assert steps == [2, 4, 6, 8]
    progress = [n.progress for n in server.notes if n.progress and n.round == 2]
    assert [done for done, _, _ in progress] == [0.5, 1.0, 1.0, 1.5, 2.0, 2.0]
    assert all(of == (2.0, "epoch") for of in [(p[1], p[2]) for p in progress])


def test_a_body_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def main() -> None:
        for _task in rounds(trainer(max_epochs=1), Line()):
            pass

    site = Site("here", tmp_path, tmp_path)
    with pytest.raises(ConfigurationError, match=r"round 1, site 'here': .*trainer\.fit"):
        serve(LoadedExecutor("trial", loop=main), site, Server(1))


def test_a_reply_of_ones_own_is_the_only_one(tmp_path: Path) -> None:
    server = Server(1)

    def main() -> None:
        line, own = Line(), trainer(max_epochs=1)
        for task in rounds(own, line):
            own.fit(line, loader())
            task.reply(tensors_of(line), weight=7, metrics={"mine": 1.0})

    run(server, main, tmp_path)
    assert [(u.weight, u.metrics) for u in server.updates] == [(7, {"mine": 1.0})]


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield X[0], Y[0]


def test_data_without_a_length_asks_for_a_weight(tmp_path: Path) -> None:
    def main() -> None:
        line, own = Line(), trainer(max_steps=2)
        for _task in rounds(own, line):
            own.fit(line, DataLoader(Endless(), batch_size=2))

    site = Site("here", tmp_path, tmp_path)
    with pytest.raises(ConfigurationError, match=r"Pass rounds\(\.\.\., weight="):
        serve(LoadedExecutor("trial", loop=main), site, Server(1))


def test_a_model_of_another_module_is_named(tmp_path: Path) -> None:
    server = Server(1)
    server.model = {"layer.weight": np.zeros((2, 1), np.float32)}

    def main() -> None:
        for _task in rounds(trainer(max_epochs=1), Line()):
            pass

    site = Site("here", tmp_path, tmp_path)
    with pytest.raises(ConfigurationError, match=r"does not fit the Line built here"):
        serve(LoadedExecutor("trial", loop=main), site, server)
