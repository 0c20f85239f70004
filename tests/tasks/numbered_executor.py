"""Executors whose model is a site's own number, a..e: 1..5; what comes of them is a closed form.

The job's config makes sites fail: `{"silent": {"train": ["b"]}, "refuses": {"c": 2}}`, where c does
not evaluate the model that is near 2.
"""

import numpy as np

from prefect_federated import Site, Tensors, Update, executor

MODEL: Tensors = {"w": np.zeros(2), "shared": np.full(1, 0.5)}


def number(site: str) -> int:
    """Returns a site's number."""
    return ord(site[0]) - ord("a") + 1


def loss(model: float, site: str) -> float:
    """Returns the loss of a model at a site."""
    return (model - number(site)) ** 2 + 0.5


@executor
def train(model: Tensors, site: Site) -> Update:
    """Returns the site's number, and the round in thousandths."""
    silent = site.config.get(f"silent_in_{site.round}", [])
    assert isinstance(silent, list)
    if site.name in silent:
        raise ValueError("nothing to say")
    return Update({"w": np.full(2, number(site.name) + site.round / 1000)}, weight=2)


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures a model; `shared` comes from the global model alone."""
    value = float(model["w"][0])
    refused = site.config.get("refuses", {})
    assert isinstance(refused, dict)
    if refused.get(site.name) == round(value):
        raise ValueError(f"no | model of {value:.0f}s")
    metrics = {"loss": (value - number(site.name)) ** 2 + float(model["shared"][0])}
    return Update(metrics=metrics, weight=10 * number(site.name))
