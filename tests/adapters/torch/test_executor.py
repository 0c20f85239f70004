"""The executor's site tasks, settings and bad input."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from prefect_federated.adapters.torch import (
    Examples,
    TorchExecutor,
    TrainTest,
    load_tensors,
    tensors_of,
)
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import Site, load_executor
from prefect_federated.messages import Tensors
from tests.adapters.torch.travelling import read_only

SITE = Site("hospital", Path(), Path(), config={"seed": 3}, seed=7, round=1)


def xor_rows(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x.prod(dim=1) > 0).long()


def build_small(site: Site) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


SMALL = TorchExecutor(
    build_small, lambda site: TrainTest(xor_rows(50, site.seed), xor_rows(20, 99)), batch_size=8
)


def build_normed(site: Site) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def on_rows(rows: int, **changes: Any) -> TorchExecutor:
    own = xor_rows(rows, 1)
    return replace(SMALL, data=lambda site: TrainTest(own, xor_rows(20, 99)), **changes)


def assert_same(left: Tensors, right: Tensors, rtol: float = 0) -> None:
    assert list(left) == list(right)
    for name, array in left.items():
        expected = np.asarray(right[name], np.float64)
        np.testing.assert_allclose(np.asarray(array, np.float64), expected, rtol, err_msg=name)


def test_one_full_batch_step_equals_the_gradient_step_by_hand_in_float64() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 3)), random.normal(size=30)
    w, b = random.normal(size=(1, 3)), random.normal(size=1)

    def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] - targets) ** 2).mean()

    rows = (torch.from_numpy(x), torch.from_numpy(y))
    linear = TorchExecutor(
        lambda site: nn.Linear(3, 1, dtype=torch.float64),
        lambda site: TrainTest(rows, rows),
        loss=mean_square,
        metrics=lambda outputs, targets: {},
        lr=0.1,
        batch_size=0,
    )
    update = linear.train({"weight": w, "bias": b}, SITE)

    error = x @ w[0] + b - y
    # Sums of 30 products in another order: a few units in the last place of numbers near 1.
    by_hand = {"weight": w - 0.1 * 2 * error @ x / 30, "bias": b - 0.1 * 2 * error.mean()}
    assert_same(update.tensors, by_hand, rtol=1e-13)
    assert update.metrics["train_loss"] == pytest.approx((error**2).mean(), rel=1e-13)
    assert update.metrics["val_loss"] == pytest.approx((error**2).mean(), rel=1e-13)


def test_the_same_seed_and_round_give_the_same_update_and_others_do_not() -> None:
    model = SMALL.initialize({}, SITE).tensors
    first = SMALL.train(model, SITE)
    torch.manual_seed(12345)  # what else the process draws does not matter
    again = SMALL.train(model, SITE)

    assert_same(first.tensors, again.tensors)
    assert first.metrics == again.metrics
    next_round = SMALL.train(model, replace(SITE, round=2))
    assert not np.array_equal(first.tensors["0.weight"], next_round.tensors["0.weight"])


def test_every_site_initializes_the_same_model_from_the_jobs_seed() -> None:
    here = SMALL.initialize({}, SITE).tensors
    there = SMALL.initialize({}, replace(SITE, name="other", seed=8)).tensors
    another_job = SMALL.initialize({}, replace(SITE, config={"seed": 4})).tensors

    assert_same(here, there)
    assert not np.array_equal(here["0.weight"], another_job["0.weight"])


def test_training_leaves_the_received_model_and_the_callers_random_numbers_alone() -> None:
    model = dict(SMALL.initialize({}, SITE).tensors)
    before = {name: array.copy() for name, array in model.items()}
    read_only(model)
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    SMALL.train(model, SITE)
    assert torch.equal(torch.rand(3), expected)
    assert_same(model, before)


def test_metrics_of_training_are_those_of_the_received_model_on_the_test_rows() -> None:
    model = SMALL.initialize({}, SITE).tensors
    module = build_small(SITE)
    load_tensors(module, model)
    module.eval()
    x, y = xor_rows(20, 99)
    outputs = module(x)

    for update, label in ((SMALL.train(model, SITE), "val_"), (SMALL.evaluate(model, SITE), "")):
        assert update.metrics[f"{label}accuracy"] == (outputs.argmax(1) == y).double().mean()
        expected = nn.functional.cross_entropy(outputs, y).item()
        # The mean over batches of 8, 8 and 4 rows against the mean over 20, in float32.
        assert update.metrics[f"{label}loss"] == pytest.approx(expected, rel=1e-6)

    assert SMALL.train(model, SITE).weight == 50
    assert SMALL.train(model, SITE).metrics_weight == 20
    evaluated = SMALL.evaluate(model, SITE)
    assert evaluated.weight == 20
    assert not evaluated.tensors


def test_tensors_a_dataset_and_a_loader_are_all_examples() -> None:
    x, y = xor_rows(50, 1)
    dataset = TensorDataset(x, y)
    loader = DataLoader(dataset, batch_size=10, shuffle=True)
    sources: list[Examples] = [(x, y), dataset, loader]
    for examples in sources:
        learner = replace(SMALL, data=lambda site, e=examples: TrainTest(e, e))  # type: ignore[misc]
        model = learner.initialize({}, SITE).tensors
        update = learner.train(model, replace(SITE, config={"seed": 3, "epochs": 3}))
        assert update.weight == 50
        assert update.metrics_weight == 50
        again = learner.train(model, replace(SITE, config={"seed": 3, "epochs": 3}))
        assert_same(update.tensors, again.tensors)


def test_a_whole_dataset_in_one_batch_gives_what_its_tensors_give() -> None:
    x, y = xor_rows(50, 1)
    sources: list[Examples] = [(x, y), TensorDataset(x, y)]
    updates = []
    for examples in sources:
        linear = TorchExecutor(
            lambda site: nn.Linear(2, 2),
            lambda site, e=examples: TrainTest(e, e),  # type: ignore[misc]
            batch_size=0,
        )
        updates.append(linear.train(linear.initialize({}, SITE).tensors, SITE))
    assert_same(updates[0].tensors, updates[1].tensors)


def test_yes_no_logits_are_right_where_their_sign_is() -> None:
    x, y = torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([[1.0], [1.0], [0.0]])
    yes_no = TorchExecutor(
        lambda site: nn.Linear(1, 1, bias=False),
        lambda site: TrainTest((x, y), (x, y)),
        loss=nn.functional.binary_cross_entropy_with_logits,
    )
    update = yes_no.evaluate({"weight": np.ones((1, 1), np.float32)}, SITE)
    assert update.metrics["accuracy"] == pytest.approx(1 / 3)


def test_the_jobs_config_overrides_the_executors_settings() -> None:
    model = SMALL.initialize({}, SITE).tensors
    config = {"seed": 3, "lr": 0.5, "epochs": 2, "batch_size": 25}
    by_config = SMALL.train(model, replace(SITE, config=config))
    by_field = replace(SMALL, lr=0.5, epochs=2, batch_size=25).train(model, SITE)
    assert_same(by_config.tensors, by_field.tensors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -1),
        ("lr", "fast"),
        ("lr", -0.1),
        ("mu", -1),
        ("mu", "much"),
        ("momentum", -0.5),
        ("compile", "yes"),
        ("precision", "float8"),
        ("device", "gpu"),
        ("device", "cuda:first"),
    ],
)
def test_a_setting_out_of_range_is_named(key: str, value: float | str) -> None:
    model = SMALL.initialize({}, SITE).tensors
    with pytest.raises(ConfigurationError, match=f"config '{key}' is .*{value}"):
        SMALL.train(model, replace(SITE, config={key: value}))


def test_training_that_diverges_is_refused_at_the_site() -> None:
    model = SMALL.initialize({}, SITE).tensors
    with pytest.raises(
        UpdateRejected, match=r"site 'hospital': the training loss became (nan|inf) .*lr"
    ):
        SMALL.train(model, replace(SITE, config={"lr": 1e38}))


def test_no_examples_give_an_error_and_no_test_rows_only_the_training_loss() -> None:
    nothing = (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    untrained = replace(SMALL, data=lambda site: TrainTest(nothing, nothing))
    model = SMALL.initialize({}, SITE).tensors
    with pytest.raises(ConfigurationError, match="no training examples"):
        untrained.train(model, SITE)
    with pytest.raises(ConfigurationError, match="no test examples"):
        untrained.evaluate(model, SITE)

    untested = replace(SMALL, data=lambda site: TrainTest(xor_rows(10, 0), nothing))
    update = untested.train(model, SITE)
    assert set(update.metrics) == {"train_loss"}
    assert update.metrics_weight is None


def test_an_adapter_is_found_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_job.py").write_text(
        "from torch import nn\n"
        "from prefect_federated.adapters.torch import TorchExecutor\n"
        "learner = TorchExecutor(lambda site: nn.Linear(1, 2), lambda site: None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_executor("own_job:learner")
    assert set(loaded.functions) == {"initialize", "train", "evaluate", "scaffold", "ditto"}
    assert set(loaded.function("initialize")({}, SITE).tensors) == {"weight", "bias"}


def test_importing_prefect_federated_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, prefect_federated, prefect_federated.executors\n"
        "print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


def test_buffers_are_named_in_every_update_that_has_tensors() -> None:
    names = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    normed = replace(SMALL, build=build_normed)
    initial = normed.initialize({}, SITE)
    assert initial.buffers == names
    assert normed.train(initial.tensors, SITE).buffers == names
    assert SMALL.train(SMALL.initialize({}, SITE).tensors, SITE).buffers == ()


def test_momentum_and_weight_decay_of_the_config_reach_the_optimizer() -> None:
    model = SMALL.initialize({}, SITE).tensors
    config = {"seed": 3, "momentum": 0.9, "weight_decay": 0.01}
    by_config = SMALL.train(model, replace(SITE, config=config))

    def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=0.01)

    assert_same(by_config.tensors, replace(SMALL, optimizer=sgd).train(model, SITE).tensors)
    adam = replace(SMALL, optimizer=torch.optim.Adam)
    with pytest.raises(ConfigurationError, match="optimizer, Adam, has no such option"):
        adam.train(model, replace(SITE, config={"momentum": 0.9}))


def test_a_site_with_one_label_trains_like_any_other() -> None:
    x, _ = xor_rows(30, 1)
    own = (x, torch.ones(30, dtype=torch.long))
    one_label = replace(SMALL, data=lambda site: TrainTest(own, own))
    update = one_label.train(one_label.initialize({}, SITE).tensors, SITE)
    after = one_label.evaluate(update.tensors, SITE)
    assert after.metrics["loss"] < update.metrics["val_loss"]
    assert after.metrics["accuracy"] == 1


@pytest.mark.parametrize("as_dataset", [False, True])
def test_with_batch_norm_a_last_row_that_is_alone_joins_the_batch_before(as_dataset: bool) -> None:
    x, y = xor_rows(17, 1)
    sizes = []

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_normed(SITE)

        def forward(self, inputs: Tensor) -> Any:
            if self.training:
                sizes.append(len(inputs))
            return self.inner(inputs)

    own: Examples = TensorDataset(x, y) if as_dataset else (x, y)
    normed = TorchExecutor(lambda site: Normed(), lambda site: TrainTest(own, own), batch_size=8)
    update = normed.train(normed.initialize({}, SITE).tensors, SITE)
    assert sizes == [8, 9]
    assert update.weight == 17
    assert update.tensors["inner.1.num_batches_tracked"] == 2


def test_without_batch_norm_a_last_row_stays_a_batch_of_its_own() -> None:
    seventeen = on_rows(17, build=lambda site: nn.Linear(2, 2))
    model = seventeen.initialize({}, SITE).tensors
    x, y = xor_rows(17, 1)
    module = nn.Linear(2, 2)
    load_tensors(module, model)
    seed = int(np.random.SeedSequence([SITE.seed, SITE.round]).generate_state(1)[0])
    order = torch.randperm(17, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for rows in torch.split(order, 8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert_same(seventeen.train(model, SITE).tensors, tensors_of(module))


def test_one_row_and_a_batch_norm_is_said_in_words() -> None:
    single = on_rows(1, build=build_normed)
    model = single.initialize({}, SITE).tensors
    with pytest.raises(ConfigurationError, match=r"'hospital': a training batch has one example"):
        single.train(model, SITE)

    x, y = xor_rows(17, 1)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    loaded = replace(single, data=lambda site: TrainTest(loader, loader))
    with pytest.raises(ConfigurationError, match="drop_last=True"):
        loaded.train(model, SITE)


def test_a_dataset_without_a_length_is_refused_and_its_loader_taken() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(zip(*xor_rows(20, 1), strict=True))

    sources: list[Examples] = [Stream(), DataLoader(Stream(), batch_size=8)]
    refused, taken = (
        replace(SMALL, data=lambda site, e=each: TrainTest(e, e))  # type: ignore[misc]
        for each in sources
    )
    model = SMALL.initialize({}, SITE).tensors
    with pytest.raises(ConfigurationError, match="Return a DataLoader of it"):
        refused.train(model, SITE)
    assert taken.train(model, SITE).weight == 20


def test_divergence_is_noticed_before_the_last_epoch() -> None:
    model = SMALL.initialize({}, SITE).tensors
    with pytest.raises(UpdateRejected, match=r"became (nan|inf) after 7 steps"):  # one epoch
        SMALL.train(model, replace(SITE, config={"lr": 1e38, "epochs": 1000}))
