"""A module of all that travels, as the executor of a job."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prefect_federated.adapters.torch import load_tensors, tensors_of
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update


class Everything(nn.Module):
    """One of each dtype, a scalar, tied weights and a batch norm's integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(4)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
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


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Returns a module's tensors."""
    torch.manual_seed(5)
    return Update(tensors_of(Everything()))


@executor
def train(model: Tensors, site: Site) -> Update:
    """Returns what came, by way of a module."""
    module = Everything()
    load_tensors(module, model)
    return Update(tensors_of(module))
