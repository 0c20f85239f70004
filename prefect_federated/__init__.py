"""Federated learning whose engine is Prefect 3.

What executors are written with needs no Prefect; what runs jobs is imported when it is first used.
"""

from typing import TYPE_CHECKING

from prefect_federated.errors import FederatedError
from prefect_federated.executors import Site, SiteTask, executor, site_tasks
from prefect_federated.messages import SiteFailure, Tensors, Update

if TYPE_CHECKING:
    from prefect_federated.agents.simulator import SimulationResult, simulate
    from prefect_federated.tabular.saved import load_fitted

__all__ = [
    "FederatedError",
    "SimulationResult",
    "Site",
    "SiteFailure",
    "SiteTask",
    "Tensors",
    "Update",
    "executor",
    "load_fitted",
    "simulate",
    "site_tasks",
]


def __getattr__(name: str) -> object:
    if name in ("simulate", "SimulationResult"):
        from prefect_federated.agents import simulator

        return getattr(simulator, name)
    if name == "load_fitted":
        from prefect_federated.tabular import saved

        return saved.load_fitted
    raise AttributeError(f"module 'prefect_federated' has no attribute {name!r}")
