"""Several sites' classifiers as one scikit-learn classifier: by votes, or by calibrated scores.

Source: Platt 1999, "Probabilistic outputs for support vector machines", equation 1, fitted with the
targets of his section 2.2 by Newton steps as Lin, Lin and Weng 2007, "A note on Platt's
probabilistic outputs for support vector machines", have them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from prefect_federated.errors import ConfigurationError, UpdateRejected

Floats = NDArray[np.float64]

_MOST_STEPS = 100
_RIDGE = 1e-12


class Calibrated(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose scores are turned into probabilities by a sigmoid a class.

    Args:
        estimator: A fitted classifier with `decision_function`.
        slopes: One for each class but the first for two classes; else one a class.
        offsets: Likewise.
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        slopes: Sequence[float] = (),
        offsets: Sequence[float] = (),
    ) -> None:
        self.estimator = estimator
        self.slopes = slopes
        self.offsets = offsets

    @property
    def classes_(self) -> NDArray[np.float64]:
        """The classes that the classifier has seen."""
        return np.asarray(self.estimator.classes_)

    def __sklearn_is_fitted__(self) -> bool:
        return len(self.slopes) > 0

    def fit(self, rows: Floats, label: NDArray[np.float64]) -> "Calibrated":
        """Fits the classifier anew, and its sigmoids on the same rows."""
        fitted = calibrate(self.estimator.fit(rows, label), rows, label)
        self.slopes, self.offsets = fitted.slopes, fitted.offsets
        return self

    def predict_proba(self, rows: Floats) -> Floats:
        """Returns probabilities, `(n_rows, n_classes)`: sigmoids of the scores, scaled to sum 1."""
        scores = np.asarray(self.estimator.decision_function(rows))
        scores = scores.reshape(len(scores), -1)
        each = _sigmoid(scores * np.asarray(self.slopes) + np.asarray(self.offsets))
        if each.shape[1] == 1:
            return np.hstack([1 - each, each])
        return np.asarray(each / np.maximum(each.sum(axis=1, keepdims=True), 1e-300))

    def predict(self, rows: Floats) -> NDArray[np.float64]:
        """Returns the most probable classes, `(n_rows,)`."""
        return np.asarray(self.classes_[self.predict_proba(rows).argmax(axis=1)])


class Vote(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fitted classifiers that decide together; each may know other classes than the others.

    Args:
        members: Name -> fitted classifier, as pairs.
        weights: One a member.
        classes: All classes, sorted.
        by: "vote": each gives its weight to one class; "score": each spreads it by its
            probabilities.
    """

    def __init__(
        self,
        members: Sequence[tuple[str, BaseEstimator]],
        weights: Sequence[float],
        classes: Sequence[float | str],
        by: Literal["vote", "score"] = "score",
    ) -> None:
        self.members = members
        self.weights = weights
        self.classes = classes
        self.by = by

    @property
    def classes_(self) -> NDArray[np.float64]:
        """All classes, sorted."""
        return np.asarray(self.classes)

    def __sklearn_is_fitted__(self) -> bool:
        return len(self.members) > 0

    def fit(self, rows: Floats, label: NDArray[np.float64]) -> "Vote":
        """Fits each member anew, all on the same rows."""
        for _, member in self.members:
            member.fit(rows, label)
        return self

    def predict_proba(self, rows: Floats) -> Floats:
        """Returns each class's share of the members' weight, `(n_rows, n_classes)`."""
        total = np.zeros((len(rows), len(self.classes)))
        for (_, member), weight in zip(self.members, self.weights, strict=True):
            places = np.searchsorted(self.classes_, member.classes_)
            if self.by == "score":
                total[:, places] += weight * member.predict_proba(rows)
            else:
                chosen = np.searchsorted(self.classes_, member.predict(rows))
                total[np.arange(len(rows)), chosen] += weight
        return np.asarray(total / sum(self.weights))

    def predict(self, rows: Floats) -> NDArray[np.float64]:
        """Returns the classes with the largest shares, `(n_rows,)`; the first one of equals."""
        return np.asarray(self.classes_[self.predict_proba(rows).argmax(axis=1)])


def calibrate(estimator: BaseEstimator, rows: Floats, label: NDArray[np.float64]) -> Calibrated:
    """Returns a fitted classifier with sigmoids fitted on rows that it was not fitted on.

    Args:
        estimator: Has `decision_function` and `classes_`.
        rows: `(n_rows, n_features)`.
        label: `(n_rows,)`, the classes.
    """
    scores = np.asarray(estimator.decision_function(rows)).reshape(len(rows), -1)
    classes = list(estimator.classes_)
    positive = classes[1:] if scores.shape[1] == 1 else classes
    fits = [_platt(scores[:, j], label == each) for j, each in enumerate(positive)]
    return Calibrated(estimator, [slope for slope, _ in fits], [offset for _, offset in fits])


def _platt(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns slope a and offset b of P(positive | f) = 1 / (1 + exp(-(a f + b)))."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    high, low = (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2)
    target = np.where(positive, high, low)
    design = np.column_stack([scores, np.ones_like(scores)])
    found = np.array([0.0, np.log((n_positive + 1) / (n_negative + 1))])
    loss = _log_loss(design @ found, target)
    for _ in range(_MOST_STEPS):
        chance = _sigmoid(design @ found)
        gradient = design.T @ (chance - target)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + _RIDGE * np.eye(2)
        if np.abs(gradient).max() < 1e-5:
            break
        step, length = np.linalg.solve(curvature, gradient), 1.0
        while (new := _log_loss(design @ (found - length * step), target)) > loss:
            length /= 2
            if length < 1e-10:
                return float(found[0]), float(found[1])
        found, loss = found - length * step, new
    return float(found[0]), float(found[1])


def _log_loss(scores: Floats, target: Floats) -> float:
    return float(np.sum(np.logaddexp(0, scores) - target * scores))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def votes_of(
    members: Sequence[tuple[str, BaseEstimator, float]],
    classes: Sequence[float | str],
    by: Literal["vote", "score"],
) -> Vote:
    """Returns the members, `(name, fitted classifier, weight)` each, as one classifier.

    Raises:
        ConfigurationError: there are none.
    """
    if not members:
        raise ConfigurationError("an ensemble needs at least one site's model, and there is none.")
    pairs = [(name, estimator) for name, estimator, _ in members]
    return Vote(pairs, [weight for _, _, weight in members], classes, by)


def with_names(vote: Vote, classes: Sequence[float | str]) -> Vote:
    """Gives an ensemble the label's own classes instead of their numbers; in place."""
    for _, member in vote.members:
        estimator = member.estimator
        estimator.classes_ = np.asarray(list(classes))[np.asarray(estimator.classes_).astype(int)]
    vote.classes = list(classes)
    return vote


def check_member(fitted: object, site: str, kind: type, classes: int, columns: int) -> None:
    """Checks that what a site has sent can be a member of the ensemble.

    Args:
        fitted: What arrived.
        site: Who has sent it.
        kind: The class of the classifier that is calibrated: not one that holds rows, unless the
            job and the site let them leave.
        classes: How many classes all sites have.
        columns: Of the rows that it takes.

    Raises:
        UpdateRejected: it is another model, of other classes or columns, or not finite.
    """
    expected = f"a calibrated {kind.__name__} of {columns} columns and some of {classes} classes"
    if not isinstance(fitted, Calibrated) or type(fitted.estimator) is not kind:
        what = type(getattr(fitted, "estimator", fitted)).__name__
        raise UpdateRejected(f"site {site!r}: it sent a {what}, and expected is {expected}.")
    estimator: Any = fitted.estimator
    try:
        numbers = np.asarray(fitted.classes_, np.float64)
        lines = 1 if len(numbers) == 2 else len(numbers)
        its_scores = np.asarray(estimator.decision_function(np.zeros((1, columns))))
        parts = [numbers, its_scores, *(np.asarray(p) for p in (fitted.slopes, fitted.offsets))]
        fits = (
            all(np.isfinite(part).all() for part in parts)
            and np.isin(numbers, np.arange(classes)).all()
            and (np.diff(numbers) > 0).all()
            and its_scores.size == lines
            and parts[2].shape == parts[3].shape == (lines,)
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UpdateRejected(
            f"site {site!r}: its model does not predict ({error}), and expected is {expected}."
        ) from error
    if not fits:
        raise UpdateRejected(
            f"site {site!r}: its model has other classes or shapes, or is not finite; expected is "
            f"{expected}. Run the same version of prefect-federated there, or leave it out."
        )
