"""What a module is computed on and how: its device, its precision, compiled or not.

Numbers on a GPU need not be the same bit for bit in two runs, whatever the seed: cuDNN picks its
algorithms by speed, and some kernels add in no fixed order. `torch.use_deterministic_algorithms`
in the module of the executor, and `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the site's environment, make
them so, at a price in speed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from prefect_federated.errors import ConfigurationError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Config `precision` -> the dtype of autocast; None computes in the module's own dtypes."""


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module's parameters are; the CPU if it has none."""
    return next(module.parameters(), torch.empty(0)).device


def chosen_device(name: str, module: nn.Module) -> torch.device:
    """Returns the device by its name in a job's config: "auto", "cpu", "cuda" or "cuda:1".

    Args:
        name: The name; "auto" is where the module already is.
        module: The module that is to be computed there.

    Raises:
        ConfigurationError: there is no device of that name, or not on this machine.
    """
    if name == "auto":
        return device_of(module)
    kind, colon, number = name.partition(":")
    if kind == "cuda" and (number.isdecimal() or not colon):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= there:
            what = f"{there} such GPUs, numbered from 0" if there else "no such GPU"
            raise ConfigurationError(
                f"config 'device' is {name!r}, but torch {torch.__version__} finds {what} on this "
                "machine. Take 'cpu', or 'auto' and let `build` choose at each site."
            )
    elif name != "cpu":
        raise ConfigurationError(
            f"config 'device' is {name!r}; it is one of 'auto' (where `build` puts the module), "
            "'cpu', 'cuda' and 'cuda:N' with the GPU's number."
        )
    return torch.device(name)


def check_precision(name: str) -> None:
    """Checks the name of a precision in a job's config.

    Raises:
        ConfigurationError: it is none of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        choices = ", ".join(map(repr, PRECISIONS))
        raise ConfigurationError(f"config 'precision' is {name!r}; it is one of {choices}.")


def mixed_precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context of a forward pass; the parameters keep their own dtype."""
    dtype = PRECISIONS[name]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def loss_scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Returns what keeps float16's small gradients from becoming 0; it does nothing for others."""
    return torch.amp.GradScaler(device.type, enabled=name == "float16")


def compiled(module: nn.Module) -> Callable[[Tensor], Any]:
    """Returns the module's forward pass, compiled at its first call; the module stays as it is.

    So its tensors keep their names. What was compiled once in a process serves its next rounds.

    Raises:
        ConfigurationError: `torch.compile` does not work on this machine.
    """
    _check_compiler(device_of(module))
    return torch.compile(module)


@cache
def _check_compiler(device: torch.device) -> None:
    """Compiles the least there is, to say at once what would fail in the midst of training."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except RuntimeError as error:
        raise ConfigurationError(
            f"torch.compile failed at this site: {str(error).splitlines()[0]}. It needs a C++ "
            "compiler on the site's machine; or set 'compile' to false in the job's config."
        ) from error
