"""Executors of the tests: those of tree bagging, of which sites fail once, or always."""

from prefect_federated import Site, Tensors, Update, executor
from prefect_federated.adapters.xgboost import bagging as built_in
from prefect_federated.adapters.xgboost.bagging import (
    alone,
    columns,
    evaluate,
    explain,
    labels,
    validate,
)

__all__ = ["alone", "columns", "evaluate", "explain", "labels", "validate"]


@executor
def train(model: Tensors, site: Site) -> Update:
    """The trees of a round; raises in the round that the config says, once, or at a site."""
    mark = site.data / "has-failed"
    if site.round == site.config.get("fails_once_in") and not mark.exists():
        mark.touch()
        raise ValueError("this round fails")
    if site.name == site.config.get("fails_at"):
        raise ValueError("this site fails")
    return built_in.train(model, site)
