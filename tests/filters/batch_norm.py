"""A network with batch norms, and sites whose inputs differ in scale and offset."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prefect_federated import Site, Tensors, Update, executor
from prefect_federated.adapters.torch import load_tensors, tensors_of
from prefect_federated.model_file import write_model

OWN = ("1.*",)
"""Patterns of the names of what belongs to the network's batch norm."""


def build() -> nn.Module:
    """Returns the network before training; the same at each site."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def examples(site: str) -> tuple[Tensor, Tensor]:
    """Returns a site's inputs, shifted and scaled by its number, and their classes."""
    number = int(site.rpartition("-")[2])
    x = np.random.default_rng(number).normal(number * 3, number, size=(40, 6))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(x[:, 0] > number * 3).long()


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Gives the network before training."""
    return Update(tensors_of(build()))


@executor
def train(model: Tensors, site: Site) -> Update:
    """Makes a few steps; writes down what it got and what came of it."""
    module = build()
    load_tensors(module, model)
    write_model(_note(site, "got"), model)
    x, y = examples(site.name)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trained = tensors_of(module)
    write_model(_note(site, "trained"), trained)
    return Update(trained, weight=len(y))


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures the network on the site's examples; writes down what it got."""
    module = build().eval()
    load_tensors(module, model)
    write_model(_note(site, "evaluated"), model)
    x, y = examples(site.name)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module(x), y).item()
    return Update(metrics={"loss": loss}, weight=len(y))


def _note(site: Site, what: str) -> Path:
    return site.state / f"{what}-{site.round}.safetensors"
