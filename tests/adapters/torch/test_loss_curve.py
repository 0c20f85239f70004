"""What a site tells while it trains."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest, loss_curve
from prefect_federated.errors import UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.messages import Note

ROWS = (torch.ones(25, 1), torch.zeros(25))


@dataclass(frozen=True)
class Told:
    """A stream that keeps what it was told."""

    notes: list[Note] = field(default_factory=list)

    def tell(self, note: Note) -> None:
        self.notes.append(note)

    @property
    def points(self) -> list[tuple[int | None, dict[str, float]]]:
        return [(note.step, dict(note.metrics)) for note in self.notes if note.metrics]

    @property
    def progress(self) -> list[tuple[float, float, str] | None]:
        return [note.progress for note in self.notes if note.progress]


def counted() -> TorchExecutor:
    """Its loss is 1, 2, 3, ... from step to step; 10 of 25 rows each, then 5."""
    steps = iter(range(1, 10**6))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * 0 + (next(steps) if outputs.requires_grad else 0)

    return TorchExecutor(
        lambda site: nn.Linear(1, 1),
        lambda site: TrainTest(ROWS, ROWS),
        loss=loss,
        metrics=lambda outputs, targets: {},
        batch_size=10,
        epochs=2,
    )


def site(folder: Path, told: Told, round: int = 1) -> Site:
    return Site("a", folder, folder, round=round, stream=told, kind="train")


def test_each_epoch_is_told_with_the_mean_of_its_losses_by_rows(tmp_path: Path) -> None:
    told = Told()
    executor = counted()
    model = executor.initialize({}, site(tmp_path, told)).tensors
    update = executor.train(model, site(tmp_path, told, round=4))

    first, second = (10 * 1 + 10 * 2 + 5 * 3) / 25, (10 * 4 + 10 * 5 + 5 * 6) / 25
    before = 3 * 2 * 3  # rounds, epochs, steps
    assert told.points == [
        (before + 3, {"train_loss": first}), (before + 6, {"train_loss": second})
    ]  # fmt: skip
    assert told.progress == [(1, 2, "epoch"), (2, 2, "epoch")]
    assert update.metrics["train_loss"] == (first + second) / 2
    assert {note.round for note in told.notes} == {4}


def test_within_an_epoch_it_is_told_when_it_is_time_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_curve, "TELL_EVERY_S", 0.0)  # always
    told = Told()
    executor = replace(counted(), epochs=1)
    executor.train(executor.initialize({}, site(tmp_path, told)).tensors, site(tmp_path, told))
    assert told.points == [(step, {"train_loss": float(step)}) for step in (1, 2, 3)]
    fractions = [each[0] for each in told.progress if each]
    np.testing.assert_allclose(fractions, [1 / 3, 2 / 3, 1, 1])


def test_a_personal_models_curve_has_its_own_name(tmp_path: Path) -> None:
    told = Told()
    executor = replace(counted(), epochs=1)
    executor.ditto(executor.initialize({}, site(tmp_path, told)).tensors, site(tmp_path, told))
    assert [list(metrics) for _, metrics in told.points] == [
        ["train_loss"], ["personal_train_loss"]
    ]  # fmt: skip
    assert told.progress == [(1, 1, "epoch"), (1, 1, "personal epoch")]


def test_a_loss_that_is_not_finite_is_told_and_then_refused(tmp_path: Path) -> None:
    told = Told()
    executor = replace(counted(), loss=lambda outputs, targets: outputs.sum() * torch.nan)
    here = site(tmp_path, told)
    with pytest.raises(UpdateRejected, match="site 'a': the training loss became nan after 3"):
        executor.train(executor.initialize({}, here).tensors, here)
    assert [np.isnan(metrics["train_loss"]) for _, metrics in told.points] == [True]
