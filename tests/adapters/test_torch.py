import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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

SITE = Site("hospital", Path(), Path(), config={"seed": 3}, seed=7, round=1)


class Everything(nn.Module):
    """One of each dtype, a scalar, tied weights and a batch norm's integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(4)
        self.temperature = nn.Parameter(torch.randn(()))
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.complex64):
            name = str(dtype).removeprefix("torch.")
            self.register_parameter(f"own_{name}", nn.Parameter(torch.randn(3, 2, dtype=dtype)))
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
            name = str(dtype).removeprefix("torch.")
            self.register_buffer(f"buffer_{name}", torch.randint(0, 2, (2, 3)).to(dtype))
        self.register_buffer("empty", torch.zeros(0, 3))


def read_only(tensors: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    for array in tensors.values():
        array.setflags(write=False)
    return tensors


def test_every_dtype_survives_the_round_trip_exactly_and_without_a_warning() -> None:
    torch.manual_seed(0)
    source = Everything()
    source.norm(torch.randn(8, 4))
    target = Everything()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tensors(target, read_only(tensors_of(source)))

    expected, found = source.state_dict(), target.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert target.head.weight is target.embedding.weight
    assert found["norm.num_batches_tracked"].shape == ()
    assert found["norm.num_batches_tracked"] == 1


def test_every_bfloat16_value_travels_as_float32_and_comes_back_in_every_bit() -> None:
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    source = nn.ParameterDict({"w": nn.Parameter(finite)})
    target = nn.ParameterDict({"w": nn.Parameter(torch.zeros_like(finite))})

    tensors = tensors_of(source)
    load_tensors(target, tensors)

    assert tensors["w"].dtype == np.float32
    assert torch.equal(target["w"].view(torch.int16), finite.view(torch.int16))


def test_the_arrays_share_no_memory_with_the_module() -> None:
    module = nn.Linear(2, 1)
    tensors = tensors_of(module)
    before = tensors["weight"].copy()
    with torch.no_grad():
        module.weight.add_(1)
    np.testing.assert_array_equal(tensors["weight"], before)

    load_tensors(module, tensors)
    tensors["weight"][:] = 9
    np.testing.assert_array_equal(tensors_of(module)["weight"], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "'bias' is missing"),
        (lambda t: t.update(extra=np.zeros(1)), "'extra' is not in this module"),
        (
            lambda t: t.update(weight=np.zeros((2, 2), np.float32)),
            r"'weight' is float32 \(2, 2\), in this module float32 \(1, 2\)",
        ),
        (
            lambda t: t.update(weight=np.zeros((1, 2))),
            r"'weight' is float64 \(1, 2\), in this module float32 \(1, 2\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_named_and_changes_nothing(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    module = nn.Linear(2, 1)
    before = tensors_of(module)
    tensors = {name: array + 1 for name, array in tensors_of(module).items()}
    change(tensors)

    with pytest.raises(ConfigurationError, match=message):
        load_tensors(module, tensors)

    for name, array in tensors_of(module).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_long_list_of_what_does_not_fit_is_cut() -> None:
    with pytest.raises(ConfigurationError, match=r"; and 7 more\. Build the same module"):
        load_tensors(nn.Sequential(*(nn.Linear(1, 1) for _ in range(6))), {})


def test_state_that_is_no_array_is_refused_with_its_name() -> None:
    float8 = nn.Module()
    float8.register_buffer("scale", torch.zeros(2).to(torch.float8_e4m3fn))
    with pytest.raises(ConfigurationError, match=r"'scale' is torch\.float8_e4m3fn"):
        tensors_of(float8)

    class Extra(nn.Module):
        def get_extra_state(self) -> str:
            return "a note"

    with pytest.raises(ConfigurationError, match="'_extra_state' is a str"):
        tensors_of(Extra())


def xor_rows(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x.prod(dim=1) > 0).long()


def build_small(site: Site) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


SMALL = TorchExecutor(
    build_small, lambda site: TrainTest(xor_rows(50, site.seed), xor_rows(20, 99)), batch_size=8
)


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
    assert update.metrics["loss"] == pytest.approx((error**2).mean(), rel=1e-13)


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

    for update in (SMALL.train(model, SITE), SMALL.evaluate(model, SITE)):
        assert update.metrics["accuracy"] == (outputs.argmax(1) == y).double().mean()
        expected = nn.functional.cross_entropy(outputs, y).item()
        # The mean over batches of 8, 8 and 4 rows against the mean over 20, in float32.
        assert update.metrics["loss"] == pytest.approx(expected, rel=1e-6)

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
    # Sums of the same 50 rows in another order, in float32.
    assert_same(updates[0].tensors, updates[1].tensors, rtol=1e-5)


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
    ("key", "value"), [("epochs", 0), ("epochs", 1.5), ("batch_size", -1), ("lr", "fast")]
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
    assert set(loaded.functions) == {"initialize", "train", "evaluate"}
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
