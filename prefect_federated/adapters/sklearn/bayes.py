"""Naive Bayes in one round: the sites' sums by class are all that the pooled model is made of.

Gaussian: numbers, means and squared deviations by class; the smoothing is a share of the pooled
rows' largest variance, which follows from them. Multinomial, complement and Bernoulli: counts.

Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1;
the smoothing and the logarithms are those of scikit-learn's classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in

Floats = NDArray[np.float64]

EXACT = frozenset(
    f"sklearn.naive_bayes.{name}" for name in ("GaussianNB", "MultinomialNB", "BernoulliNB")
)
"""Estimators that `site_sums` and `merged` make exactly."""


def site_sums(estimator: Any, rows: Floats, label: Floats, classes: int) -> dict[str, Tensor]:
    """Returns a site's sums by class.

    Args:
        estimator: One of `EXACT`, not fitted.
        rows: `(n_rows, d)`, float64.
        label: `(n_rows,)`: numbers of classes.
        classes: How many classes all sites have.

    Returns:
        "rows" `(n_classes,)`; "mean" and "squares" `(n_classes, d)` for the Gaussian one, "counts"
        `(n_classes, d)` for the others.

    Raises:
        ConfigurationError: MultinomialNB was given numbers below 0.
    """
    by_class = [rows[label == k] for k in range(classes)]
    counted = np.array([len(part) for part in by_class], dtype=np.float64)
    if type(estimator).__name__ == "GaussianNB":
        empty = np.zeros(rows.shape[1])
        means = np.array([part.mean(axis=0) if len(part) else empty for part in by_class])
        squares = np.array(
            [np.square(part - mean).sum(axis=0) for part, mean in zip(by_class, means, strict=True)]
        )
        return {"rows": counted, "mean": means, "squares": squares}
    if type(estimator).__name__ == "BernoulliNB":
        if estimator.binarize is not None:
            by_class = [np.where(part > estimator.binarize, 1.0, 0.0) for part in by_class]
    elif rows.size and rows.min() < 0:
        raise ConfigurationError(
            "MultinomialNB counts, and there are numbers below 0. Set scale to false, and use "
            "columns of counts; or take GaussianNB."
        )
    return {"rows": counted, "counts": np.array([part.sum(axis=0) for part in by_class])}


def merged(
    estimator: Any, sites: Mapping[str, Mapping[str, Tensor]], classes: Tensor, columns: int
) -> Any:
    """Returns the estimator fitted as on the pooled rows.

    Args:
        estimator: One of `EXACT`; it is fitted in place.
        sites: Site -> what `site_sums` gave there.
        classes: What it predicts, in the order of their numbers.
        columns: Encoded columns, d.

    Raises:
        UpdateRejected: sums that do not fit together, or a class without a row at any site.
    """
    is_gaussian = type(estimator).__name__ == "GaussianNB"
    parts = [
        numbers_in(
            sites[site],
            {"rows": (len(classes),)}
            | dict.fromkeys(
                ("mean", "squares") if is_gaussian else ("counts",), (len(classes), columns)
            ),
            site,
            not_negative=("rows", "squares", "counts"),
            of="the sums'",
        )
        for site in sorted(sites)
    ]
    rows = sum((part["rows"] for part in parts), np.zeros(len(classes)))
    empty = [str(each) for each, n in zip(classes, rows, strict=True) if n == 0]
    if empty:
        raise UpdateRejected(f"no site has a training row of the class {', '.join(empty)}.")
    estimator.classes_, estimator.class_count_ = classes, rows
    if is_gaussian:
        _gaussian(estimator, parts, rows)
    else:
        _counted(estimator, parts, rows)
    return estimator


def _gaussian(estimator: Any, parts: Sequence[Mapping[str, Tensor]], rows: Floats) -> None:
    means = np.zeros_like(parts[0]["mean"])
    squares, n = np.zeros_like(means), np.zeros(len(rows))
    for part in parts:
        mean, its_squares, its_n = part["mean"], part["squares"], part["rows"]
        total = np.maximum(n + its_n, 1)
        distance = mean - means
        squares = squares + its_squares + distance**2 * (n * its_n / total)[:, None]
        means = means + distance * (its_n / total)[:, None]
        n = n + its_n
    share = (rows / rows.sum())[:, None]
    overall = (share * means).sum(axis=0)
    variance = squares.sum(axis=0) / rows.sum() + (share * (means - overall) ** 2).sum(axis=0)
    estimator.epsilon_ = estimator.var_smoothing * variance.max()
    estimator.theta_ = means
    estimator.var_ = squares / rows[:, None] + estimator.epsilon_
    given = estimator.priors
    estimator.class_prior_ = rows / rows.sum() if given is None else np.asarray(given)
    estimator.n_features_in_ = means.shape[1]


def _counted(estimator: Any, parts: Sequence[Mapping[str, Tensor]], rows: Floats) -> None:
    counts = np.zeros_like(parts[0]["counts"])
    for part in parts:
        counts = counts + part["counts"]
    estimator.feature_count_, estimator.n_features_in_ = counts, counts.shape[1]
    smoothed = counts + np.asarray(estimator.alpha)
    if type(estimator).__name__ == "BernoulliNB":
        total = (rows + 2 * np.asarray(estimator.alpha)).reshape(-1, 1)
    else:
        total = smoothed.sum(axis=1).reshape(-1, 1)
    estimator.feature_log_prob_ = np.log(smoothed) - np.log(total)
    if estimator.class_prior is not None:
        prior = np.log(estimator.class_prior)
    elif estimator.fit_prior:
        prior = np.log(rows) - np.log(rows.sum())
    else:
        prior = np.full(len(rows), -np.log(len(rows)))
    estimator.class_log_prior_ = prior
