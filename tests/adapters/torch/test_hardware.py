"""Precision, devices and compilation."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.adapters.torch.hardware import chosen_device
from prefect_federated.control_variates import joined
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue
from tests.adapters.torch.noisy import noisy

SEEN: list[torch.dtype] = []


class Watched(nn.Module):
    """Tells in which dtype it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        SEEN.append(outputs.dtype)
        return outputs


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
OWN = (X, (X[:, 0] > 0).long())
WATCHED = TorchExecutor(lambda site: Watched(), lambda site: TrainTest(OWN, OWN), epochs=5)


def site(folder: Path, **config: JsonValue) -> Site:
    return Site("hospital", folder, folder, config=config, seed=7, round=1)


@pytest.mark.parametrize("kind", ["train", "scaffold", "ditto"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_half_and_keeps_the_weights_whole(
    tmp_path: Path, precision: str, kind: str
) -> None:
    config: dict[str, JsonValue] = {"mu": 0.01} if kind == "train" else {}
    task = WATCHED.federated_executors()[kind]
    model = WATCHED.initialize({}, site(tmp_path)).tensors
    whole = task(model, site(tmp_path / "whole", **config))
    SEEN.clear()
    mixed = task(model, site(tmp_path / "mixed", precision=precision, **config))

    assert set(SEEN) == {getattr(torch, precision)}
    assert mixed.metrics.keys() == whole.metrics.keys()
    for name, array in mixed.tensors.items():
        assert array.dtype == np.float32
        # Ten steps of 0.1 whose gradients have 8 bits at least, in bfloat16.
        np.testing.assert_allclose(array, whole.tensors[name], atol=0.02, err_msg=name)
        assert array.tobytes() != whole.tensors[name].tobytes()


def test_float16_scales_the_loss_so_that_small_gradients_are_not_lost(tmp_path: Path) -> None:
    """Unscaled, the gradient of each output, 3e-11, is below the smallest number of float16."""

    def tiny(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.float().sum() * 1e-9 / len(targets)

    small = replace(WATCHED, loss=tiny, lr=1e6, epochs=1)
    model = small.initialize({}, site(tmp_path)).tensors
    after = small.train(model, site(tmp_path, precision="float16")).tensors
    moved = model["inner.bias"] - after["inner.bias"]
    # Two steps of lr * 1e-9 each.
    np.testing.assert_allclose(moved, 2 * 1e-3, rtol=1e-2)


def test_steps_that_float16_leaves_out_are_not_counted_in_scaffold(tmp_path: Path) -> None:
    """A gradient that overflows at the first scales makes the scaler skip steps."""

    def steep(outputs: Tensor, targets: Tensor) -> Tensor:
        return 4.0 * outputs.float().mean()

    full = replace(WATCHED, loss=steep, lr=0.01, epochs=6, batch_size=0)
    model = full.initialize({}, site(tmp_path)).tensors
    here = site(tmp_path, precision="float16")
    change = full.scaffold(joined(model, {}), here).tensors["control/inner.bias"]
    np.testing.assert_allclose(change, 2.0, rtol=1e-2)  # the gradient, however many steps


def test_a_gpu_that_is_not_there_is_said_and_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.Linear(1, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"'cuda', but torch .* finds no such GPU"):
        chosen_device("cuda", module)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match=r"'cuda:2', but torch .* finds 2 such GPUs"):
        chosen_device("cuda:2", module)
    assert chosen_device("cuda:1", module) == torch.device("cuda", 1)
    assert chosen_device("auto", module) == torch.device("cpu")


def test_a_wrong_name_is_answered_with_the_choices(tmp_path: Path) -> None:
    model = WATCHED.initialize({}, site(tmp_path)).tensors
    with pytest.raises(ConfigurationError, match=r"'auto' .* 'cpu', 'cuda' and 'cuda:N'"):
        WATCHED.train(model, site(tmp_path, device="gpu"))
    with pytest.raises(ConfigurationError, match="'float32', 'bfloat16', 'float16'"):
        WATCHED.train(model, site(tmp_path, precision="half"))


def test_a_module_goes_to_the_device_of_the_config(tmp_path: Path) -> None:
    """On the device "meta" nothing is computed, so that it shows where things are."""
    elsewhere = replace(WATCHED, build=lambda site: Watched().to("meta"))
    model = WATCHED.initialize({}, site(tmp_path)).tensors
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        elsewhere.train(model, site(tmp_path, device="cpu"))


def test_a_compiled_module_trains_as_the_plain_one_and_its_tensors_keep_their_names(
    tmp_path: Path,
) -> None:
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = (x, torch.arange(16) % 4)
    still = replace(
        noisy,
        build=lambda site: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4)),
        data=lambda site: TrainTest(own, own),
        batch_size=16,
    )
    model = still.initialize({}, site(tmp_path)).tensors
    plain = still.ditto(model, site(tmp_path / "plain"))
    fast = still.ditto(model, site(tmp_path / "fast", compile=True))
    assert list(fast.tensors) == list(plain.tensors)
    for name, array in plain.tensors.items():
        # Fused kernels add in another order: float32, two steps.
        np.testing.assert_allclose(fast.tensors[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in plain.metrics.items():
        assert fast.metrics[name] == pytest.approx(value, rel=1e-4)


def test_without_a_compiler_compile_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from prefect_federated.errors import ConfigurationError\n"
        "from tests.adapters.torch.test_hardware import WATCHED, site\n"
        "model = WATCHED.initialize({}, site(Path())).tensors\n"
        "try:\n"
        "    WATCHED.train(model, site(Path(), compile=True))\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "CXX": "/no/compiler",
            "PATH": "",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.startswith("torch.compile failed at this site: "), done.stderr
    assert "set 'compile' to false" in done.stdout
