"""The site's executor of horizontal XGBoost: sites have rows of the same columns.

Each tree is grown on the histograms of all sites' gradients, which are summed by the controller.
"""

from functools import partial

from prefect_federated.adapters.xgboost import collective
from prefect_federated.adapters.xgboost.boosting import Plan, Shard, boost
from prefect_federated.adapters.xgboost.collective import Work
from prefect_federated.adapters.xgboost.matrix import matrices, matrix, threads_of
from prefect_federated.adapters.xgboost.measuring import alone, columns, evaluate, explain
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update

__all__ = ["alone", "columns", "evaluate", "explain", "go_on", "start", "stop"]


@executor
def start(model: Tensors, site: Site) -> Update:
    """Starts the training; answers with its first event. See `collective.start`."""
    return collective.start(site, partial(_load, Plan.of(model, site), site))


@executor
def go_on(model: Tensors, site: Site) -> Update:
    """Hands the training what it waits for; answers with its next event."""
    return collective.go_on(model, site)


@executor
def stop(model: Tensors, site: Site) -> Update:
    """Ends the training."""
    return collective.stop(site)


def _load(plan: Plan, site: Site) -> Work:
    parts, threads = matrices(site).fitted, threads_of(site)

    def make() -> Shard:
        train = matrix(parts["train"], threads)
        evaluated = site.config.get("evaluated")
        if not isinstance(evaluated, str):
            return Shard(train)
        return Shard(train, [(matrix(parts[evaluated], threads), evaluated)])

    return lambda training: boost(training, plan, make)
