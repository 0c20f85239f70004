"""A site's examples, and the batches that a training or test loop takes of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prefect_federated.errors import ConfigurationError

Examples: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]"
"""Inputs and targets as two tensors, a dataset of such pairs, or a loader of batches of them."""

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainTest:
    """A site's own examples: those it trains on, and those it only measures on."""

    train: Examples
    test: Examples


def batches(
    examples: Examples,
    size: int,
    order: torch.Generator | None = None,
    *,
    pairs_at_least: bool = False,
) -> Batches:
    """Returns one pass over the examples, in batches of inputs and targets.

    Args:
        examples: The examples; a `DataLoader` keeps its own batches and order.
        size: Examples a batch; 0 for all at once.
        order: Draws the order of the pass; as they stand if None.
        pairs_at_least: Whether a last batch of a single example joins the one before, since batch
            normalization has nothing to normalize one example by.

    Raises:
        ConfigurationError: a dataset without a length.
    """
    if isinstance(examples, DataLoader):
        return examples
    if isinstance(examples, IterableDataset):
        raise ConfigurationError(
            f"the examples are a {type(examples).__name__}, which has no length to shuffle by. "
            "Return a DataLoader of it."
        )
    rows = len(examples) if isinstance(examples, Dataset) else len(examples[1])  # type: ignore[arg-type]
    index = torch.arange(rows) if order is None else torch.randperm(rows, generator=order)
    parts = list(torch.split(index, size or max(rows, 1))) if rows else []
    if pairs_at_least and len(parts) > 1 and len(parts[-1]) == 1:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    if isinstance(examples, Dataset):
        return DataLoader(examples, batch_sampler=[part.tolist() for part in parts])
    x, y = examples
    return ((x[part], y[part]) for part in parts)


def batches_per_pass(examples: Examples, size: int) -> int | None:
    """Returns how many batches one pass has, give or take a last one; None if that is not known."""
    try:
        if isinstance(examples, DataLoader):
            return len(examples)
        rows = len(examples) if isinstance(examples, Dataset) else len(examples[1])  # type: ignore[arg-type]
    except TypeError:  # what is iterable need not have a length
        return None
    return -(-rows // size) if size else 1
