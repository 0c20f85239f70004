"""What a model of the pooled rows gives, and one of a single site's: fitted without a federation.

Of the package nothing is used here: arithmetic is numpy's, or that of scikit-learn, statsmodels and
XGBoost.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NEWTON_STEPS = 50


def encoder(
    rows: pd.DataFrame, categories: Mapping[str, Sequence[str]]
) -> Callable[[pd.DataFrame], Floats]:
    """Returns what makes rows columns of numbers, fitted on these rows.

    Numbers are scaled to mean 0 and variance 1 (n in the denominator), a missing one is the mean;
    text becomes a column of 0 and 1 for each category but the first.
    """
    numeric = [name for name in rows.columns if name not in categories]
    mean, scale = rows[numeric].mean().fillna(0.0), rows[numeric].std(ddof=0).fillna(0.0)
    scale = scale.where(scale > 0, 1.0)

    def encode(given: pd.DataFrame) -> Floats:
        numbers = (given[numeric].fillna(mean) - mean) / scale
        columns = [numbers.to_numpy(dtype=float)]
        for name, values in categories.items():
            columns.append((given[[name]].to_numpy() == np.array(values[1:], object)).astype(float))
        return np.hstack(columns)

    return encode


def svm_accuracy(train: pd.DataFrame, test: pd.DataFrame, label: str) -> float:
    """Returns the accuracy of scikit-learn's SVC with its defaults, on scaled columns."""
    from sklearn.svm import SVC

    rows, rows_to_measure = train.drop(columns=label), test.drop(columns=label)
    encode = encoder(rows, {})
    fitted = SVC().fit(encode(rows), train[label])
    return float(fitted.score(encode(rows_to_measure), test[label]))


def kmeans_inertia(rows: Floats, clusters: int, restarts: int, seed: int) -> float:
    """Returns the inertia of scikit-learn's KMeans."""
    from sklearn.cluster import KMeans

    return float(KMeans(clusters, n_init=restarts, random_state=seed).fit(rows).inertia_)


def inertia(rows: Floats, centers: Floats) -> float:
    """Returns the sum of squared distances of rows to the nearest centre each."""
    apart = np.stack([((rows - center) ** 2).sum(axis=1) for center in centers])
    return float(apart.min(axis=0).sum())


def logistic(rows: pd.DataFrame, categories: Mapping[str, Sequence[str]], label: str) -> Any:
    """Returns scikit-learn's logistic regression with C = 1, as rows -> probability of 1."""
    from sklearn.linear_model import LogisticRegression

    features = rows.drop(columns=label)
    encode = encoder(features, categories)
    fitted = LogisticRegression(max_iter=10_000, tol=1e-8).fit(encode(features), rows[label])
    return lambda given: fitted.predict_proba(encode(given[list(features.columns)]))[:, 1]


def ridge_coefficients(rows: pd.DataFrame, label: str, alpha: float) -> Floats:
    """Returns intercept and coefficients in the features' own units, `(1 + n_features,)`.

    The least squares of the scaled columns with a row sqrt(alpha) for each below them, by numpy's
    singular values.
    """
    x, mean, scale = _scaled(rows.drop(columns=label))
    y = rows[label].to_numpy(dtype=float)
    below = np.vstack([x, np.sqrt(alpha) * np.eye(x.shape[1])])
    right = np.concatenate([y - y.mean(), np.zeros(x.shape[1])])
    found = np.linalg.lstsq(below, right, rcond=None)[0]
    return _own_units(y.mean(), found, mean, scale)


def penalised_logistic_coefficients(rows: pd.DataFrame, label: str, alpha: float) -> Floats:
    """Returns intercept and coefficients in the features' own units, `(1 + n_features,)`.

    The minimum of the summed loss plus alpha / 2 times the squared scaled coefficients, by
    Newton's method from zero with halved steps where the loss would rise.
    """
    x, mean, scale = _scaled(rows.drop(columns=label))
    y = rows[label].to_numpy(dtype=float)
    design = np.column_stack([np.ones(len(x)), x])
    penalty = alpha * np.r_[0.0, np.ones(x.shape[1])]

    def loss(at: Floats) -> float:
        score = design @ at
        return float((np.logaddexp(0, score) - y * score).sum() + (penalty * at**2).sum() / 2)

    at = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-design @ at))
        gradient = design.T @ (chance - y) + penalty * at
        hessian = (design.T * (chance * (1 - chance))) @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        while loss(at - step) > loss(at) * (1 + 1e-14):
            step = step / 2
        at = at - step
        if np.abs(step).max() <= 1e-14 * np.abs(at).max():
            break
    return _own_units(at[0], at[1:], mean, scale)


def logistic_table(rows: pd.DataFrame, label: str) -> tuple[Floats, Floats]:
    """Returns coefficients and standard errors of statsmodels' GLM without a penalty."""
    import statsmodels.api as sm

    design = sm.add_constant(rows.drop(columns=label).to_numpy(dtype=float))
    size = np.abs(design).max(axis=0)  # else statsmodels' own steps lose digits
    model = sm.GLM(rows[label], design / size, family=sm.families.Binomial())
    first = model.fit(tol=1e-15, maxiter=50)
    # its standard errors are of the step before the last: begun at the end, that is the end, too
    fit = model.fit(start_params=first.params, tol=1e-15, maxiter=50)
    return np.asarray(fit.params / size), np.asarray(fit.bse / size)


def relative_error(found: Sequence[float], expected: Floats) -> float:
    """Returns the largest of |found - expected| / |expected|."""
    return float((np.abs(np.asarray(found) - expected) / np.abs(expected)).max())


def _scaled(rows: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    x = rows.to_numpy(dtype=float)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    return (x - mean) / scale, mean, scale


def _own_units(constant: float, scaled: Floats, mean: Floats, scale: Floats) -> Floats:
    found = scaled / scale
    return np.concatenate([[constant - float(mean @ found)], found])
