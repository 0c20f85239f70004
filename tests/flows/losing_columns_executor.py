"""A vertical executor one of whose sites is lost, or fails, once, where its config says so."""

from pathlib import Path

from prefect_federated.adapters.xgboost import collective, vertical
from prefect_federated.adapters.xgboost.events import Failed, update_of
from prefect_federated.adapters.xgboost.vertical import columns, matched, start, stop
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update

__all__ = ["columns", "go_on", "match", "matched", "start", "stop"]

matchings: list[str] = []
"""The sites that were asked for their keys, as often as they were."""


@executor
def match(model: Tensors, site: Site) -> Update:
    """Matches rows, and counts how often it begins to."""
    if not site.config["step"]:
        matchings.append(site.name)
    return vertical.match(model, site)


@executor
def go_on(model: Tensors, site: Site) -> Update:
    """Goes on, but for one call in the round in which the site is lost."""
    lost, mark = site.config.get("lost"), Path(site.state) / "lost"
    assert isinstance(lost, dict)
    if site.name == lost["site"] and site.round == lost["round"] and not mark.exists():
        mark.touch()
        if lost.get("fails"):
            collective.stop(site)
            return update_of(Failed("out of memory"))
        raise ConnectionError("the power is out")
    return vertical.go_on(model, site)
