"""Site tasks of cyclic boosting: each site boosts the model of the one before it."""

import numpy as np

from prefect_federated.adapters.xgboost.matrix import matrices
from prefect_federated.adapters.xgboost.measuring import (
    alone,
    columns,
    evaluate,
    explain,
    labels,
    parameters,
    seed_of,
    validate,
)
from prefect_federated.adapters.xgboost.merge import BOOSTER, ROUNDS, name_of
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update

__all__ = ["alone", "columns", "evaluate", "explain", "labels", "train", "validate"]


@executor
def train(model: Tensors, site: Site) -> Update:
    """Boosts the model by the site's rows, as `xgboost.train(..., xgb_model=...)` does."""
    import xgboost

    rows = matrices(site)
    steps = int(site.number("steps", 1))
    given = {**parameters(site), "seed": seed_of(site, site.round)}
    before = bytearray(model[BOOSTER].tobytes()) or None
    grown = xgboost.Booster(given, [rows.train], before)
    done = grown.num_boosted_rounds()
    names = [int(name) for name in model[ROUNDS]]
    for step in range(done, done + steps):
        grown.update(rows.train, step)
        names.append(name_of(bytes(grown[step].save_raw("ubj")) + site.name.encode()))
    raw = bytes(grown.save_raw("ubj"))
    return Update(
        {BOOSTER: np.frombuffer(raw, np.uint8), ROUNDS: np.array(names, np.uint64)},
        weight=rows.fitted["train"].rows,
    )
