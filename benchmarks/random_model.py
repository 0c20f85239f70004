"""The executor of the benchmarks: random float32 tensors, which no compression makes smaller.

Training adds a constant, so that a round costs what the framework costs, and the result is known.
"""

import functools

import numpy as np

from prefect_federated import Site, Tensors, Update, executor

_TENSORS = 4


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Returns `config["params"]` random floats in a few tensors."""
    random = np.random.default_rng(0)
    sizes = np.diff(np.linspace(0, site.number("params", 1000), _TENSORS + 1).astype(int))
    return Update(
        {f"layer{i}": random.random(size, dtype=np.float32) for i, size in enumerate(sizes) if size}
    )


@executor
def train(model: Tensors, site: Site) -> Update:
    """Returns the model plus the site's own constant, in fresh memory."""
    step = np.float32(_constant(site.name))
    return Update({name: np.add(array, step) for name, array in model.items()})


@functools.cache
def _constant(site: str) -> float:
    return sum(site.encode()) / 1000
