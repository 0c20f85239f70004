"""A vertical executor one of whose sites is lost once, where its config says so."""

from pathlib import Path

from prefect_federated.adapters.xgboost import vertical
from prefect_federated.adapters.xgboost.vertical import columns, match, matched, start, stop
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update

__all__ = ["columns", "go_on", "match", "matched", "start", "stop"]


@executor
def go_on(model: Tensors, site: Site) -> Update:
    """Goes on, but for one call in the round in which the site is lost."""
    lost, mark = site.config.get("lost"), Path(site.state) / "lost"
    assert isinstance(lost, dict)
    if site.name == lost["site"] and site.round == lost["round"] and not mark.exists():
        mark.touch()
        raise ConnectionError("the power is out")
    return vertical.go_on(model, site)
