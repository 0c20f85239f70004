"""A module's state as arrays and back: by itself, and through a job."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prefect_federated import simulate
from prefect_federated.adapters.torch import buffer_names, load_tensors, tensors_of
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from tests.adapters.torch import travelling
from tests.adapters.torch.travelling import Everything, read_only


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


def test_buffers_are_told_from_parameters_and_tied_ones() -> None:
    names = buffer_names(Everything())
    assert {"norm.running_mean", "norm.num_batches_tracked", "buffer_bool", "empty"} <= set(names)
    parameters = {"embedding.weight", "head.weight", "layers.1.bias", "temperature"}
    assert not parameters & set(names)
    assert len(names) == 3 + 6 + 1


@pytest.mark.usefixtures("prefect_api")
def test_every_dtype_comes_through_two_rounds_of_a_job_in_every_bit() -> None:
    parameters: dict[str, JsonValue] = {"executor": travelling.__name__, "rounds": 2}
    result = simulate("fedavg", sites=2, parameters=parameters)
    sent = travelling.initialize({}, None).tensors  # type: ignore[arg-type]
    assert set(result.model) == set(sent)
    for name, array in sent.items():
        assert result.model[name].dtype == array.dtype, name
        assert result.model[name].shape == array.shape, name
        assert result.model[name].tobytes() == array.tobytes(), name
