"""SCAFFOLD in PyTorch against the paper's lines in NumPy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.control_variates import joined, parted
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from tests.adapters.torch.linear import (
    LINEAR,
    LR,
    START,
    Model,
    assert_bits,
    assert_close,
    gradient,
    site,
    steps,
)

STEPS = 5
C: Model = {"weight": np.array([[0.5, -0.25, 0.125]]), "bias": np.array([-0.5])}
ZERO: Model = {name: 0 * array for name, array in C.items()}


@pytest.mark.parametrize("option", [1, 2])
def test_two_rounds_are_those_of_the_paper(tmp_path: Path, option: int) -> None:
    x, own = START, ZERO
    for number in (1, 2):
        counted: dict[str, JsonValue] = {"hospital": 1} if number == 2 else {}
        here = site(tmp_path, number, epochs=STEPS, option=option, counted=counted)
        sent, change = parted(LINEAR.scaffold(joined(x, C), here).tensors)

        now = own
        y = steps(x, STEPS, lambda w: {name: C[name] - now[name] for name in w})  # noqa: B023
        if option == 1:
            new = gradient(x)
        else:
            new = {n: now[n] - C[n] + (x[n] - y[n]) / (STEPS * LR) for n in x}
        assert_close(sent, y)
        # c_i+ divides rounding errors of x - y_i by K lr = 0.25 in option 2.
        assert_close(change, {name: new[name] - now[name] for name in x})
        x, own = y, new


def test_zero_control_variates_leave_training_as_it_is_bit_for_bit(tmp_path: Path) -> None:
    here = site(tmp_path, epochs=3, batch_size=7)
    plain = LINEAR.train(START, here)
    update = LINEAR.scaffold(joined(START, ZERO), here)
    assert_bits(parted(update.tensors)[0], plain.tensors)
    assert update.weight == plain.weight
    assert update.metrics == plain.metrics
    first = LINEAR.scaffold(START, here)  # a first message has none
    assert_bits(first.tensors, update.tensors)


def test_a_sites_control_variate_outlives_its_process_and_updates_that_did_not_count(
    tmp_path: Path,
) -> None:
    first = LINEAR.scaffold(joined(START, C), site(tmp_path, 1, epochs=STEPS))
    LINEAR.scaffold(joined(START, C), site(tmp_path, 2, epochs=1, counted={"hospital": 1}))
    # Another object, as a new process makes it: it knows what the folder holds, and nothing else.
    other = replace(LINEAR)
    here = site(tmp_path, 3, epochs=STEPS, counted={"hospital": 1})
    sent, _ = parted(other.scaffold(joined(START, C), here).tensors)
    own = parted(first.tensors)[1]
    by_hand = steps(START, STEPS, lambda w: {name: C[name] - own[name] for name in w})
    assert_close(sent, by_hand)


class Shared(nn.Module):
    """Tied weights, a batch norm, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.norm(self.first(inputs))) * self.frozen
        return outputs


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tied_frozen_and_unused_parameters_and_buffers(
    tmp_path: Path, option: int, precision: str
) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    own = (x, torch.arange(20) % 4)
    shared = TorchExecutor(lambda site: Shared(), lambda site: TrainTest(own, own))
    initial = shared.initialize({}, site(tmp_path))
    here = site(tmp_path, option=option, precision=precision)
    update = shared.scaffold(initial.tensors, here)
    model, change = parted(update.tensors)

    assert set(change) == set(model) - set(update.buffers)
    assert change["first.weight"].any()
    assert change["first.weight"].tobytes() == change["second.weight"].tobytes()
    assert not change["frozen"].any()
    assert not change["unused"].any()
    assert {array.dtype for array in change.values()} == {np.dtype(np.float32)}
    assert model["norm.num_batches_tracked"] == 1  # option 1's pass leaves no trace
    if option == 2:  # one step: the gradient is what the model went by
        moved = (initial.tensors["first.weight"] - model["first.weight"]) / np.float32(0.1)
        np.testing.assert_allclose(change["first.weight"], moved, rtol=1e-6)


def test_option_2_and_an_optimizer_that_is_not_plain_sgd_are_refused_and_option_1_is_not(
    tmp_path: Path,
) -> None:
    adam = replace(LINEAR, optimizer=torch.optim.Adam)
    with pytest.raises(ConfigurationError, match=r"this is Adam with lr \[0.05\].* option to 1"):
        adam.scaffold(joined(START, C), site(tmp_path))
    with pytest.raises(ConfigurationError, match=r"this is SGD .* momentum 0.9"):
        LINEAR.scaffold(joined(START, C), site(tmp_path, momentum=0.9))
    adam.scaffold(joined(START, C), site(tmp_path, option=1))


def test_a_proximal_term_beside_scaffold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SCAFFOLD has no proximal term"):
        LINEAR.scaffold(joined(START, C), site(tmp_path, mu=0.1))


def test_a_model_that_does_not_fit_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'bias' is missing"):
        LINEAR.scaffold({"weight": START["weight"]}, site(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
