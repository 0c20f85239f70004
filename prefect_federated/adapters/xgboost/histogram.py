"""The site's executor of horizontal XGBoost: sites have rows of the same columns.

Each tree is grown on the histograms of all sites' gradients, which are summed by the controller.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.adapters.xgboost import collective
from prefect_federated.adapters.xgboost.boosting import Plan, Shard, boost
from prefect_federated.adapters.xgboost.collective import Training
from prefect_federated.adapters.xgboost.events import BOOSTER, Ended
from prefect_federated.adapters.xgboost.matrices import matrix_of
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.question import question_in
from prefect_federated.tabular.rows import describe, load_rows
from prefect_federated.tabular.scores import scores

if TYPE_CHECKING:
    import xgboost


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Says what columns this site has."""
    return describe(site)


@executor
def start(model: Tensors, site: Site) -> Update:
    """Starts the training; answers with its first event. See `collective.start`."""
    return collective.start(site, partial(_train, Plan.of(model, site), site))


@executor
def go_on(model: Tensors, site: Site) -> Update:
    """Hands the training what it waits for; answers with its next event."""
    return collective.go_on(model, site)


@executor
def stop(model: Tensors, site: Site) -> Update:
    """Ends the training."""
    return collective.stop(site)


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures a model on this site's test rows."""
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(np.asarray(model[BOOSTER]).tobytes()))
    return _measured(booster, site)


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Trains a model of this site's rows only, as the job trains all, and measures it."""
    import xgboost

    plan, rows = Plan.of(model, site), load_rows(site)
    train = matrix_of(rows.train, plan.parameters)
    return _measured(xgboost.train(dict(plan.parameters), train, plan.rounds), site)


def _train(plan: Plan, site: Site, training: Training) -> Ended:
    rows = load_rows(site)

    def make() -> Shard:
        train = matrix_of(rows.train, plan.parameters)
        if not site.config.get("evaluates"):
            return Shard(train)
        return Shard(train, [(matrix_of(rows.test, plan.parameters), "test")])

    return boost(training, plan, make)


def _measured(booster: "xgboost.Booster", site: Site) -> Update:
    test, question = load_rows(site).test, question_in(site.config)
    if not test.rows:
        return Update()
    predicted = np.asarray(booster.predict(matrix_of(replace(test, group=None), {})), np.float64)
    found = scores(question.objective, test.label, predicted, test.group)
    return Update(metrics=found, metrics_weight=test.rows)
