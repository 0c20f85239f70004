"""The site's executor of vertical XGBoost: sites have columns of the same rows, one the label.

The rows are matched by a key first, and each site keeps which of its rows they are. Training is
XGBoost's own column split: the site with the label has rank 0 and computes the gradients, which go
to the others. At the end all sites measure the model together; a row's way through a tree needs the
columns of each.
"""

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from prefect_federated.adapters.xgboost import collective
from prefect_federated.adapters.xgboost.boosting import Plan, Shard, boost
from prefect_federated.adapters.xgboost.collective import Work
from prefect_federated.adapters.xgboost.matrix import matrix, threads_of
from prefect_federated.adapters.xgboost.measuring import trained_alone
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, executor
from prefect_federated.messages import JsonValue, Tensors, Update
from prefect_federated.tabular.access import policy_of, refusal
from prefect_federated.tabular.matching import HashedIds, Matcher, Rows
from prefect_federated.tabular.question import question_in
from prefect_federated.tabular.rows import Part, describe, load_rows
from prefect_federated.tabular.scores import scores

if TYPE_CHECKING:
    import xgboost

_PARTS = ("train", "test")
_FILE = "matched-{part}.npy"

_matchers: dict[Path, Matcher] = {}  # by the site's folder for the job
_lock = threading.Lock()


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Says what columns this site has."""
    return describe(site)


@executor
def match(model: Tensors, site: Site) -> Update:
    """Says what the matching needs of this site in a step; begins anew with step 0."""
    step = int(site.number("step", 0))
    if step == 0:
        rows = load_rows(site)
        keys = {"train": rows.train.key or (), "test": rows.test.key or ()}
        with _lock:
            _matchers[site.state] = HashedIds(site.name, _ranks(site), keys)
    return Update(_matcher(site).say(step, model))


@executor
def matched(model: Tensors, site: Site) -> Update:
    """Keeps which rows of this site all sites have, in their common order; says how many.

    `rows`, `(2,)`: to train on, and to measure on. Without common hashes it says so of the rows
    that it has kept, with which a job goes on from its snapshot.

    Raises:
        ConfigurationError: they are fewer than the site's policy lets be trained on, or none were
            kept.
    """
    if model:
        _keep(site, _matcher(site).rows(model))
        with _lock:
            del _matchers[site.state]
    kept = [float(len(_kept_rows(site, part))) for part in _PARTS]
    return Update({"rows": np.array(kept)})


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


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Trains a model of this site's columns only, of the same rows, and measures it.

    Raises:
        ConfigurationError: the label is not at this site.
    """
    plan, parts, threads = Plan.of(model, site), _matched_rows(site), threads_of(site)
    if not len(parts["train"].label):
        raise ConfigurationError("the label is not at this site, so it can train nothing alone.")
    held_out = matrix(parts["validation"], threads) if parts["validation"].rows else None
    own = trained_alone(
        plan.parameters, plan.rounds, int(site.number("early_stopping_rounds", 0)),
        matrix(parts["train"], threads), held_out,
    )  # fmt: skip
    test = parts["test"]
    found = _scores(site, test, own.predict(matrix(test, threads))) if test.rows else {}
    return Update(metrics=found, metrics_weight=max(test.rows, 1))


def _load(plan: Plan, site: Site) -> Work:
    parts, threads = _matched_rows(site), threads_of(site)
    names = cast(list[str], site.config["names"])

    def make() -> Shard:
        train, *others = [
            (matrix(parts[part], threads, by_columns=True), part)
            for part in ("train", "test", "validation")
            if parts[part].rows
        ]
        return Shard(train[0], others, names)

    def measure(booster: "xgboost.Booster", shard: Shard) -> Mapping[str, float]:
        for rows, part in shard.evaluated:
            if part == "test":
                predicted = booster.predict(rows)  # a collective call: all sites take part
                return _scores(site, parts[part], predicted) if len(parts[part].label) else {}
        return {}

    return lambda training: boost(training, plan, make, measure)


def _matched_rows(site: Site) -> dict[str, Part]:
    """Returns the rows that all sites have, in their common order; some to stop early by."""
    rows = load_rows(site)
    found = {}
    for part, of_site in zip(_PARTS, (rows.train, rows.test), strict=True):
        found[part] = of_site.of(_kept_rows(site, part))
    train = found["train"]
    number = round(train.rows * site.number("validation_share", 0))
    order = np.random.default_rng(question_in(site.config).seed).permutation(train.rows)
    found["validation"] = train.of(np.sort(order[:number]))
    found["train"] = train.of(np.sort(order[number:]))
    return found


def _keep(site: Site, found: Mapping[str, Rows]) -> None:
    if why_not := refusal(policy_of(site), len(found["train"])):
        raise ConfigurationError(f"site {site.name!r}, of the rows that all sites have: {why_not}.")
    for part, rows in found.items():
        np.save(site.state / _FILE.format(part=part), rows, allow_pickle=False)


def _kept_rows(site: Site, part: str) -> Rows:
    file = site.state / _FILE.format(part=part)
    if not file.exists():
        raise ConfigurationError(
            f"site {site.name!r} has lost which of its rows the others have ({file.name} in its "
            "folder for this job). Start a new job."
        )
    kept: Rows = np.load(file, allow_pickle=False)
    return kept


def _scores(site: Site, part: Part, predicted: object) -> dict[str, float]:
    objective = question_in(site.config).objective
    return scores(objective, part.label, np.asarray(predicted, np.float64))


def _ranks(site: Site) -> list[str]:
    return [str(each) for each in cast(list[JsonValue], site.config.get("ranks", []))]


def _matcher(site: Site) -> Matcher:
    with _lock:
        matcher = _matchers.get(site.state)
    if matcher is None:
        raise ConfigurationError(
            f"site {site.name!r} has begun anew while rows were matched. Start the job again."
        )
    return matcher
