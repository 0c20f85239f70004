"""Site tasks of tree bagging: a site grows trees from the global model, and sends only these."""

import numpy as np

from prefect_federated.adapters.xgboost.matrix import matrices
from prefect_federated.adapters.xgboost.measuring import (
    alone,
    columns,
    evaluate,
    explain,
    labels,
    margins,
    parameters,
    seed_of,
    validate,
    validation,
)
from prefect_federated.adapters.xgboost.merge import TREES
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update

__all__ = ["alone", "columns", "evaluate", "explain", "labels", "train", "validate"]


@executor
def train(model: Tensors, site: Site) -> Update:
    """Grows the site's trees of one round from the global model, and sends them.

    The global model's margins are where the trees start, so that a booster without its trees grows
    what the whole one would. What was held out for early stopping is measured first.
    """
    import xgboost

    metrics, held_out = validation(model, site)
    rows = matrices(site)
    margins(model, site, "train")
    given = {**parameters(site), "seed": seed_of(site, site.round)}
    grown = xgboost.Booster(given, [rows.train])
    for step in range(int(site.number("steps", 1))):
        grown.update(rows.train, step)
    return Update(
        {"rows": np.array([float(rows.fitted["train"].rows)])},
        weight=rows.fitted["train"].rows,
        metrics=metrics,
        metrics_weight=held_out,
        blobs={TREES: bytes(grown.save_raw("ubj"))},
    )
