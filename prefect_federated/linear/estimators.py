"""The fit as a fitted scikit-learn estimator, of encoded columns. Needs the extra `sklearn`."""

from typing import Any

import numpy as np

from prefect_federated.linear.fitting import Fit, Model


def estimator_of(model: Model, fit: Fit, rounds: int) -> Any:
    """Returns the fitted estimator that scikit-learn has for the family.

    Many classes are in its symmetric form: the coefficients of all classes add up to zero.

    Args:
        model: What was fitted.
        fit: What came of it.
        rounds: For the estimator's `n_iter_`.
    """
    from sklearn import linear_model

    slopes, intercepts = fit.coefficients[:, 1:], fit.coefficients[:, 0]
    strength = model.alpha
    found: Any
    if model.loss in ("logistic", "multinomial"):
        ratio = model.l1_ratio if model.family == "elastic_net" else 0.0
        solver = "saga" if ratio else "lbfgs"
        found = linear_model.LogisticRegression(
            C=1 / strength if strength else np.inf, l1_ratio=ratio, solver=solver
        )
        if model.loss == "multinomial":
            slopes = np.vstack([np.zeros(slopes.shape[1]), slopes])
            intercepts = np.concatenate([[0.0], intercepts])
            slopes, intercepts = slopes - slopes.mean(axis=0), intercepts - intercepts.mean()
        found.classes_ = np.array(model.classes)
        found.coef_, found.intercept_ = slopes, intercepts
        found.n_iter_ = np.array([rounds], np.int32)
    else:
        if model.loss == "poisson":
            found = linear_model.PoissonRegressor(alpha=strength)
            found._base_loss = found._get_loss()
        elif model.family == "elastic_net":
            found = linear_model.ElasticNet(alpha=strength, l1_ratio=model.l1_ratio)
        elif model.family == "ridge":
            found = linear_model.Ridge(alpha=strength)
        else:
            found = linear_model.LinearRegression()
        found.coef_, found.intercept_ = slopes[0], float(intercepts[0])
        if model.family not in ("least_squares", "ridge"):
            found.n_iter_ = rounds
    found.n_features_in_ = slopes.shape[1]
    return found
