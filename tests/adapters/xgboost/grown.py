"""Problems of each objective, divided between sites, and what bagging makes of them by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xgboost
from numpy.typing import NDArray

from prefect_federated.adapters.xgboost.matrix import booster, by_query, matrix
from prefect_federated.adapters.xgboost.merge import BOOSTER, Forest, Grown, empty
from prefect_federated.adapters.xgboost.parameters import first_score, resolve
from prefect_federated.messages import JsonValue, Tensors
from prefect_federated.tabular.rows import Part

SITES = ("a", "b", "c")
COLOURS = ["blue", "green", "red", "white"]


@dataclass(frozen=True)
class Problem:
    """Rows of three sites of unequal size, with categories and missing values.

    Args:
        parameters: XGBoost's, with the first score.
        sites: Site -> its training rows.
        test: Other rows.
        classes: Of a multi-class label; else 0.
        first_margin: The margin before the first tree.
    """

    parameters: Mapping[str, JsonValue]
    sites: Mapping[str, Part]
    test: Part
    classes: int
    first_margin: float

    @property
    def pooled(self) -> Part:
        """The training rows of all sites."""
        features = pd.concat([part.features for part in self.sites.values()], ignore_index=True)
        return Part(features, np.concatenate([part.label for part in self.sites.values()]))

    def grow(self, site: str, model: Tensors) -> bytes:
        """Returns a site's trees of one round, by continuing from the margins of a model."""
        rows = matrix(self.sites[site])
        if model[BOOSTER].size:
            rows.set_base_margin(booster(model[BOOSTER]).predict(rows, output_margin=True))
        grown = xgboost.Booster(dict(self.parameters), [rows])
        grown.update(rows, 0)
        return bytes(grown.save_raw("ubj"))


def frame(rows: int, random: np.random.Generator) -> pd.DataFrame:
    """Returns numbers, of which some are missing, and a column of categories."""
    made = pd.DataFrame(random.normal(size=(rows, 4)), columns=list("wxyz"))
    made.loc[random.random(rows) < 0.1, "w"] = np.nan
    codes = random.integers(-1, 4, rows)
    made["colour"] = pd.Categorical.from_codes(codes, pd.Index(COLOURS))
    return made


def label(name: str, features: pd.DataFrame, random: np.random.Generator) -> NDArray[np.float64]:
    """Returns labels that depend on the columns, categories among them."""
    numbers = {name: features[name].fillna(0).to_numpy(float) for name in "wxyz"}
    is_even = features["colour"].cat.codes.to_numpy() % 2 == 0
    told = numbers["x"] + np.where(is_even, 1.0, -0.5) + numbers["w"] * numbers["y"]
    found: NDArray[np.float64]
    if name == "regression":
        found = told + 3 + random.normal(scale=0.3, size=len(told))
    elif name == "poisson":
        found = random.poisson(np.exp(np.clip(told / 2, -3, 2))).astype(float)
    else:
        edges = [0.0] if name == "binary" else [-0.5, 1.0]
        noisy = told + random.normal(scale=0.3, size=len(told))
        found = np.digitize(noisy, edges).astype(float)
    return found


def problem(name: str) -> Problem:
    """Returns the problem of an objective; the same each time."""
    random = np.random.default_rng(3)
    parts = {}
    for site, rows in {"a": 300, "b": 150, "c": 90, "test": 200}.items():
        features = frame(rows, random)
        group = np.arange(rows) // 10 if name == "ranking" else None
        parts[site] = by_query(Part(features, label(name, features, random), group))
    test = parts.pop("test")
    classes = 3 if name == "multiclass" else 0
    labels = np.concatenate([part.label for part in parts.values()])
    score = first_score(name, len(labels), labels.sum())
    margin = score
    if name == "binary":
        margin = np.log(score / (1 - score))
    elif name == "poisson":
        margin = np.log(score)
    given = resolve("bagging", name, {"max_cat_to_onehot": 1}, classes=classes, max_depth=4)
    parameters = {**given, "base_score": float(score), "nthread": 1}
    return Problem(parameters, parts, test, classes, float(margin))


def federated(
    made: Problem, rounds: int, *, sites: Mapping[str, Part] | None = None,
    order: Sequence[str] = SITES, start: Tensors | None = None,
) -> Tensors:  # fmt: skip
    """Returns the model after some rounds of bagging."""
    model = empty() if start is None else start
    forest = Forest(model)
    there = made.sites if sites is None else sites
    while forest.rounds < rounds:
        grown = [
            Grown(site, made.grow(site, model), there[site].rows) for site in order if site in there
        ]
        forest.append(grown, len(made.test.features.columns))
        model = forest.tensors()
    return model
