"""Rows of `benchmarks.classical` for k-means and linear models: against fits of the pooled rows."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.classical import data as tables
from benchmarks.classical import reference as reference
from benchmarks.classical.data import Divided
from benchmarks.classical.hospitals import POOLED, by_hospital
from benchmarks.classical.runs import Bench, simulated
from prefect_federated import load_fitted
from prefect_federated.messages import JsonValue

RESTARTS = 10
FEW = ["mean_radius", "mean_texture", "mean_smoothness", "mean_symmetry"]
"""Columns of breast_cancer that do not part its classes, so that no penalty is needed."""

_NUMBERS = ["age", "trestbps", "chol", "thalch", "oldpeak"]


def kmeans(bench: Bench) -> dict[str, object]:
    """Compares inertias with scikit-learn's of pooled rows, with as many restarts."""
    from prefect_federated.tasks.kmeans import KMeansRef

    ratios: dict[str, list[float]] = {"iris": [], "breast_cancer": [], "heart": []}
    rises = 0
    for seed in range(bench.seeds):
        cancer = tables.cancer(seed).pooled.drop(columns="benign")
        hospitals = tables.heart()
        heart = {site: rows[_NUMBERS] for site, rows in hospitals.train.items()}
        for name, divided, clusters, is_scaled in (
            ("iris", tables.shuffled(tables.iris(), "", seed), 3, False),
            ("breast_cancer", tables.shuffled(cancer, "", seed), 2, True),
            ("heart", Divided("", heart, {}, hospitals.tests), 3, True),
        ):
            folder = bench.new_folder()
            found = simulated(
                "kmeans", tables.write(folder / "data", divided), folder / "output", seed=seed,
                clusters=clusters, restarts=RESTARTS, scale=is_scaled, test_share=0.0,
            )  # fmt: skip
            assert isinstance(found, KMeansRef)
            rises += int((np.diff(found.inertia) > 0).sum())
            pooled = divided.pooled
            rows = reference.encoder(pooled, {})(pooled) if is_scaled else pooled.to_numpy(float)
            model: Any = load_fitted(found.path)
            ours = reference.inertia(rows, model[-1].cluster_centers_)
            theirs = reference.kmeans_inertia(rows, clusters, RESTARTS, seed)
            ratios[name].append(ours / theirs)
    return {
        "inertia_ratio": round(max(max(each) for each in ratios.values()), 6),
        "inertia_ratio_by_table": {
            name: {"max": round(max(each), 6), "mean": round(float(np.mean(each)), 6)}
            for name, each in ratios.items()
        },
        "rises": rises,
    }


def ridge(bench: Bench) -> dict[str, object]:
    """Compares ridge regression of diabetes with the pooled rows' least squares, by numpy."""
    errors = []
    for seed in range(bench.seeds):
        divided = tables.shuffled(tables.diabetes(), "progression", seed)
        found, _ = _coefficients(bench, divided, family="ridge", alpha=1.0)
        expected = reference.ridge_coefficients(divided.pooled, divided.label, 1.0)
        errors.append(reference.relative_error(found, expected))
    return {"max_relative_error": max(errors), "alpha": 1.0, "table": "diabetes"}


def logistic(bench: Bench) -> dict[str, object]:
    """Compares logistic regression of breast_cancer with statsmodels and Newton on pooled rows.

    Without a penalty on a few columns, coefficients and standard errors; with one on all columns,
    which part the classes.
    """
    plain: list[float] = []
    errors: list[float] = []
    penalised: list[float] = []
    for seed in range(bench.seeds):
        divided = tables.cancer(seed)
        few = {site: rows[[*FEW, divided.label]] for site, rows in divided.train.items()}
        some = Divided(divided.label, few, {}, divided.tests)
        found, said = _coefficients(bench, some, family="logistic")
        expected, its_errors = reference.logistic_table(some.pooled, some.label)
        plain.append(reference.relative_error(found, expected))
        errors.append(reference.relative_error([row.standard_error for row in said], its_errors))
        every = Divided(divided.label, divided.train, {}, divided.tests)
        found, _ = _coefficients(bench, every, family="logistic", alpha=1.0)
        expected = reference.penalised_logistic_coefficients(every.pooled, every.label, 1.0)
        penalised.append(reference.relative_error(found, expected))
    return {
        "max_relative_error": max(*plain, *errors, *penalised),
        "max_relative_error_without_penalty": max(plain),
        "max_relative_error_of_standard_errors": max(errors),
        "max_relative_error_with_penalty": max(penalised),
        "table": "breast_cancer",
    }


def heart_logistic(bench: Bench) -> dict[str, object]:
    """Compares one logistic regression of all hospitals with each hospital's own; C is 1."""

    def fit(rows: Divided, of: str | None) -> Any:
        if of is not None:
            train = rows.pooled if of == POOLED else rows.train[of]
            return reference.logistic(train, rows.categories, rows.label)
        folder = bench.new_folder()
        data = tables.write(folder / "data", rows)
        done = simulated(
            "linear", data, folder / "output", label=rows.label, family="logistic", alpha=1.0
        )
        model: Any = load_fitted(done.path)

        def predict(given: pd.DataFrame) -> Any:
            with warnings.catch_warnings():  # scikit-learn's, that a category is missing
                warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)
                return model.predict_proba(given.drop(columns=rows.label))[:, 1]

        return predict

    return by_hospital(bench.seeds, fit)


def _coefficients(
    bench: Bench, divided: Divided, **parameters: JsonValue
) -> tuple[list[float], list[Any]]:
    """Returns the values of a job's coefficients in the order of the columns, and its table."""
    from prefect_federated.tasks.linear import LinearRef

    folder = bench.new_folder()
    data = tables.write(folder / "data", divided)
    done = simulated(
        "linear", data, folder / "output", label=divided.label, test_share=0.0, **parameters
    )
    assert isinstance(done, LinearRef)
    names = [name for name in divided.pooled.columns if name != divided.label]
    assert [row.name for row in done.coefficients] == ["intercept", *names]
    return [row.value for row in done.coefficients], list(done.coefficients)
