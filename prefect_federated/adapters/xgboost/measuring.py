"""Site tasks that all ways to train trees share: the first score, metrics, and explanations."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from prefect_federated.adapters.xgboost.matrix import (
    booster,
    by_query,
    matrices,
    matrix,
    threads_of,
)
from prefect_federated.adapters.xgboost.merge import BOOSTER, ROUNDS, seen_before
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, executor
from prefect_federated.messages import JsonValue, Tensors, Update
from prefect_federated.tabular.access import policy_of
from prefect_federated.tabular.question import question_in
from prefect_federated.tabular.rows import describe, load_rows
from prefect_federated.tabular.scores import scores

if TYPE_CHECKING:
    import xgboost

PIECES = 5
"""Parts, of equally many rows, into which a column's values are divided for explanations."""
MOST_EXPLAINED = 2000
"""Rows that a site explains at most."""
VALIDATION = "val_"
"""Begins the names of metrics of rows that are held out for early stopping."""
EXPLANATIONS_LEAVE = (
    "For the picture of SHAP values, means over its test rows of what each column adds to "
    "predictions, and by fifths of the column's values where these have as many rows as its policy "
    "asks for."
)
"""What leaves a site that explains a model."""

Floats = NDArray[np.float64]


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Says what columns the site has."""
    return describe(site)


@executor
def labels(model: Tensors, site: Site) -> Update:
    """Sends the label's sum and number of values, by which all sites' trees start alike.

    Where the label has two classes, and one of them so few rows that the site's policy does not
    tell their number, it sends zeros.
    """
    label = load_rows(site).train.label
    count, total = float(len(label)), float(label.sum())
    least = policy_of(site).small_cell
    if question_in(site.config).objective == "binary" and min(total, count - total) < least:
        count = total = 0.0
    return Update({"count": np.array([count]), "sum": np.array([total])})


@executor
def validate(model: Tensors, site: Site) -> Update:
    """Measures a model on the training rows that are held out for early stopping."""
    metrics, rows = validation(model, site)
    return Update(metrics=metrics, metrics_weight=rows)


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures a model on the site's test rows."""
    return tested(booster(model[BOOSTER], threads_of(site)), site)


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Trains a model of the site's own rows only, with the same parameters, and measures it.

    It may boost as often as the federation's model, and stops early as that does.
    """
    given = {k: v for k, v in parameters(site).items() if k != "base_score"}
    parts, threads = matrices(site).fitted, threads_of(site)
    # the kept matrices hold the federation's margins
    rows = matrix(parts["train"], threads)
    held_out = matrix(parts["validation"], threads) if "validation" in parts else None
    own = trained_alone(
        {**given, "seed": seed_of(site)}, int(site.number("rounds", 1)),
        int(site.number("early_stopping_rounds", 0)), rows, held_out,
    )  # fmt: skip
    return tested(own, site)


def trained_alone(
    parameters: Mapping[str, JsonValue],
    rounds: int,
    patience: int,
    rows: "xgboost.DMatrix",
    held_out: "xgboost.DMatrix | None",
) -> "xgboost.Booster":
    """Returns a model of one site's rows; of its best rounds, where it stops early.

    Args:
        parameters: XGBoost's.
        rounds: Boosting rounds at most.
        patience: Rounds without a better model after which it ends; 0 for all rounds.
        rows: What it is trained on.
        held_out: What it stops early by.
    """
    import xgboost

    if not patience or held_out is None:
        return xgboost.train(dict(parameters), rows, rounds)
    own = xgboost.train(
        dict(parameters), rows, rounds, evals=[(held_out, "heldout")],
        early_stopping_rounds=patience, verbose_eval=False,
    )  # fmt: skip
    return own[: own.best_iteration + 1]


@executor
def explain(model: Tensors, site: Site) -> Update:
    """Sends what each column adds to the predictions for the site's test rows; no row leaves.

    `absolute`, `(columns,)`: the mean size of what a column adds (SHAP). `signed`,
    `(columns, PIECES)`: its mean over the rows with the lowest fifth of the column's values, the
    next, and so on; 0 where `told`, `(columns, PIECES)`, is 0: where such a part has fewer rows
    than the site's policy asks for, of categories, and of more than two classes. `rows`, `(1,)`:
    how many; 0 where they are too few.

    Source: Lundberg et al. 2020, "From local explanations to global understanding with explainable
    AI for trees", TreeSHAP.
    """
    part, least = matrices(site).fitted["test"], max(policy_of(site).minimum_rows, 1)
    names = list(part.features)
    if part.rows < least:
        return Update({
            "absolute": np.zeros(len(names)), "signed": np.zeros((len(names), PIECES)),
            "told": np.zeros((len(names), PIECES), np.uint8), "rows": np.zeros(1),
        })  # fmt: skip
    if part.rows > MOST_EXPLAINED:
        random = np.random.default_rng(site.seed)
        part = by_query(part.of(random.choice(part.rows, MOST_EXPLAINED, replace=False)))
    rows = matrix(part, threads_of(site))
    added = booster(model[BOOSTER], threads_of(site)).predict(rows, pred_contribs=True)
    added = added[..., :-1].astype(float)  # the last column is the score of all
    signed = np.full((len(names), PIECES), np.nan)
    if added.ndim == 2:
        for place, name in enumerate(names):
            if part.features[name].dtype == np.float64:
                signed[place] = by_value(part.features[name].to_numpy(), added[:, place], least)
    size = np.abs(added).mean(axis=0)
    return Update({
        "absolute": size if size.ndim == 1 else size.sum(axis=0), "signed": np.nan_to_num(signed),
        "told": np.isfinite(signed).astype(np.uint8),
        "rows": np.array([float(part.rows)]),
    })  # fmt: skip


def by_value(values: Floats, added: Floats, least: int) -> Floats:
    """Returns the mean of `added` by fifths of `values`; NaN where a fifth has too few rows."""
    there = np.flatnonzero(np.isfinite(values))
    order = there[np.argsort(values[there], kind="stable")]
    return np.array([
        added[rows].mean() if len(rows) >= least else np.nan
        for rows in np.array_split(order, PIECES)
    ])  # fmt: skip


def tested(model: "xgboost.Booster", site: Site) -> Update:
    """Returns how good a booster is on the site's test rows."""
    rows = matrices(site)
    part = rows.fitted["test"]
    if not part.rows:
        return Update(metrics={}, metrics_weight=1.0)
    objective = question_in(site.config).objective
    found = scores(objective, part.label, model.predict(rows.test).astype(float), part.group)
    return Update(metrics=found, metrics_weight=part.rows)


def validation(model: Tensors, site: Site) -> tuple[Mapping[str, float], float]:
    """Returns the metrics of held-out training rows, named `val_...`, and their number.

    Nothing where no rows are held out, or before the first round.
    """
    rows = matrices(site)
    if rows.validation is None or not model[BOOSTER].size:
        return {}, 1.0
    part = rows.fitted["validation"]
    margins(model, site, "validation")
    import xgboost

    # a booster without trees makes predictions of the margins
    given = {k: v for k, v in parameters(site).items() if k in ("objective", "num_class")}
    empty = xgboost.Booster({**given, "nthread": threads_of(site)}, [rows.validation])
    prediction = empty.predict(rows.validation).astype(float)
    found = scores(question_in(site.config).objective, part.label, prediction, part.group)
    return {VALIDATION + name: value for name, value in found.items()}, float(part.rows)


def margins(model: Tensors, site: Site, name: str) -> None:
    """Brings the margins of a site's matrix up to the model: only trees that are new are read.

    Args:
        model: The global model.
        site: Whose rows.
        name: "train" or "validation".
    """
    rows = matrices(site)
    own = rows.train if name == "train" else rows.validation
    if own is None or not model[BOOSTER].size:
        return
    names = model[ROUNDS]
    done = seen_before(names, rows.seen.get(name, []))
    if done == len(names):
        return
    if done == 0:
        own.set_base_margin(np.zeros(0, np.float32))  # an earlier model's
    grown = booster(model[BOOSTER], threads_of(site))
    margin = grown.predict(own, output_margin=True, iteration_range=(done, len(names)))
    own.set_base_margin(margin)
    rows.seen[name] = [int(each) for each in names]


def parameters(site: Site) -> dict[str, JsonValue]:
    """Returns XGBoost's parameters from the job's config, with the site's threads.

    Raises:
        ConfigurationError: the config has none.
    """
    given = site.config.get("parameters")
    if not isinstance(given, dict):
        raise ConfigurationError(
            "config 'parameters' is missing: XGBoost's, as the job gives them."
        )
    return cast(dict[str, JsonValue], {**given, "nthread": threads_of(site), "verbosity": 0})


def seed_of(site: Site, round: int = 0) -> int:
    """Returns the seed of what is random in a round at this site."""
    return int((site.seed + round) % 2**31)
