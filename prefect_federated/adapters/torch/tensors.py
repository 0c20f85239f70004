"""A module's state as the named arrays that travel, and back, exactly."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Tensors


def tensors_of(module: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Returns copies of a module's parameters and buffers, named as in its `state_dict()`.

    Weights that are tied appear under each of their names. NumPy has no bfloat16, so such a tensor
    travels as float32, which holds each of its values exactly; `load_tensors` rounds to the
    nearest bfloat16, which gives the same value back.

    Raises:
        ConfigurationError: the module keeps state that is no tensor, or of a dtype that NumPy
            does not know.
    """
    return {name: as_array(value, name) for name, value in module.state_dict().items()}


def as_array(value: Tensor, name: str = "") -> NDArray[np.generic]:
    """Returns a copy of a tensor as it travels; `name` is for the error.

    Raises:
        ConfigurationError: it is no tensor, or of a dtype that NumPy does not know.
    """
    dtype = _travel_dtype(name, value)
    return value.detach().to("cpu", dtype).numpy().copy()


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


def buffer_names(module: nn.Module) -> tuple[str, ...]:
    """Returns the names in `tensors_of(module)` that are no parameters: running means, counters."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return tuple(name for name in module.state_dict() if name not in parameters)


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
