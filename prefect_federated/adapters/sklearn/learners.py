"""Estimators that learn by `partial_fit`: found by name, made, trained and averaged."""

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor

from prefect_federated.adapters.sklearn.bayes import EXACT
from prefect_federated.adapters.sklearn.classes import CLASSES, find, path_of
from prefect_federated.adapters.sklearn.values import NotAValue
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.messages import JsonValue

Floats = NDArray[np.float64]
Combination: TypeAlias = Literal["exact", "average", "relay"]

_LINEAR = ("coef_", "intercept_")
AVERAGED: Mapping[str, tuple[str, ...]] = {
    f"sklearn.linear_model.{name}": _LINEAR
    for name in (
        "SGDClassifier", "SGDRegressor", "Perceptron", "PassiveAggressiveClassifier",
        "PassiveAggressiveRegressor",
    )
}  # fmt: skip
"""Estimators whose average over sites is one of them again; the attributes that are averaged."""


HOLDS_ROWS = frozenset({"sklearn.cluster.MiniBatchKMeans"})
"""Estimators whose state may be rows of the data: its centres begin as rows, and some stay so."""


def make(path: str, parameters: Mapping[str, JsonValue], allow: Collection[str] = ()) -> Any:
    """Returns a new estimator.

    Args:
        path: Import path, such as "sklearn.linear_model.SGDClassifier".
        parameters: Its constructor's.
        allow: Import paths beside those of scikit-learn's estimators.

    Raises:
        ConfigurationError: it is not allowed here, has no `partial_fit`, or has no such parameter;
            the message has near names.
    """
    try:
        kind = find(path, allow)
    except NotAValue as error:
        known = {each for each in CLASSES | set(allow) if each.startswith(("sklearn.", *allow))}
        raise ConfigurationError(f"estimator: {error} {_near(path, known)}") from error
    if not hasattr(kind, "partial_fit"):
        raise ConfigurationError(
            f"estimator {path} has no partial_fit, so it cannot learn on from another site's "
            f"state. {_instead(path)}"
        )
    known = set(inspect.signature(kind).parameters)
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"parameters: {path} has no parameter {name!r}. {meant}"
                f"It has {', '.join(sorted(known))}."
            )
    if parameters.get("memory") is not None:
        raise ConfigurationError("parameters: 'memory' names a folder of pickled results.")
    return kind(**parameters)


def _near(path: str, known: Collection[str]) -> str:
    last = path.rpartition(".")[2]
    by_name = {each.rpartition(".")[2]: each for each in known}
    near = difflib.get_close_matches(last, by_name, n=3, cutoff=0.7)
    if near:
        return f"Did you mean {' or '.join(by_name[each] for each in near)}?"
    return "docs/scikit-learn.md lists what may be named, and how a site allows more."


def _instead(path: str) -> str:
    name = path.rpartition(".")[2]
    instead = {
        "SVC": "Take the flow 'svm'.",
        "LinearSVC": "Take the flow 'svm' with kernel 'linear', or SGDClassifier.",
        "KMeans": "Take the flow 'kmeans', or MiniBatchKMeans.",
    }
    linear = [
        "LinearRegression",
        "Ridge",
        "Lasso",
        "ElasticNet",
        "LogisticRegression",
        "PoissonRegressor",
    ]
    if name in linear:
        return "Take the flow 'linear'."
    return instead.get(name, "Take one with partial_fit, such as SGDClassifier.")


def combination(estimator: Any, wanted: Literal["auto"] | Combination) -> Combination:
    """Returns how sites' estimators become one: exactly if it can be, else by average, else relay.

    Raises:
        ConfigurationError: the wanted way is none for this estimator.
    """
    path = path_of(estimator)
    ways: list[Combination] = ["relay"]
    if path in AVERAGED and not getattr(estimator, "average", False):
        ways.insert(0, "average")
    if path in EXACT:
        ways.insert(0, "exact")
    if wanted == "auto":
        return ways[0]
    if wanted not in ways:
        can = sorted(EXACT) if wanted == "exact" else sorted(AVERAGED)
        why = " with average=true" if path in AVERAGED and wanted == "average" else ""
        raise ConfigurationError(
            f"combine: {path}{why} cannot be combined by {wanted!r}, only by {' or '.join(ways)}. "
            f"What can: {', '.join(can)}."
        )
    return wanted


def task_of(estimator: Any) -> Literal["classes", "values", "none"]:
    """Returns what an estimator predicts: classes, values, or nothing that has a label."""
    if is_classifier(estimator):
        return "classes"
    return "values" if is_regressor(estimator) else "none"


def learn(
    estimator: Any,
    rows: Floats,
    label: Floats,
    classes: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Any:
    """Returns the estimator after some epochs of `partial_fit` on shuffled batches.

    Args:
        estimator: Learns on from where it is.
        rows: `(n_rows, d)`.
        label: `(n_rows,)`: numbers of classes, or values.
        classes: How many classes all sites have; 0 if it is no classifier.
        epochs: Passes over the rows.
        batch_size: Rows of a batch.
        seed: Of the order of the rows.
    """
    random = np.random.default_rng(seed)
    takes = set(inspect.signature(estimator.partial_fit).parameters)
    for _ in range(epochs):
        order = random.permutation(len(rows))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if task_of(estimator) == "none":
                estimator.partial_fit(rows[batch])
            elif "classes" in takes and task_of(estimator) == "classes":
                all_classes = np.arange(classes, dtype=np.float64)
                estimator.partial_fit(rows[batch], label[batch], classes=all_classes)
            else:
                estimator.partial_fit(rows[batch], label[batch])
    return estimator


def averaged(
    kind: type, sites: Mapping[str, tuple[Any, float]], shape: tuple[int, ...] | None = None
) -> Any:
    """Returns the first estimator with the weighted average of what may be averaged.

    Args:
        kind: A class that `AVERAGED` names.
        sites: Site -> its estimator, of that class, and its weight, such as its number of rows.
        shape: Of the coefficients; that of the first site's if None.

    Raises:
        UpdateRejected: they are not of one class, or their arrays are not alike.
    """
    order = sorted(sites)
    estimators, weights = zip(*(sites[site] for site in order), strict=True)
    first = estimators[0]
    names = AVERAGED[path_of(kind())]
    coefficients = np.zeros(np.shape(getattr(first, "coef_", ())) if shape is None else shape)
    for site, other in zip(order, estimators, strict=True):
        if type(other) is not kind:
            raise UpdateRejected(
                f"site {site!r}: it sent a {type(other).__name__}, and a {kind.__name__} was asked "
                "for. Run the same version of prefect-federated at all sites."
            )
        for name in (*names, "t_"):
            like: Any = coefficients if name == "coef_" else getattr(first, name, None)
            found: Any = getattr(other, name, None)
            if not _is_like(found, like):
                raise UpdateRejected(
                    f"site {site!r}: the {name!r} of its {kind.__name__} has shape "
                    f"{np.shape(found)} or is not finite, and expected is "
                    f"shape {np.shape(like)}. Choose a smaller learning rate if it has diverged."
                )
    total = float(sum(weights))
    for name in names:
        parts = [
            weight / total * np.asarray(getattr(each, name))
            for each, weight in zip(estimators, weights, strict=True)
        ]
        setattr(first, name, np.sum(parts, axis=0))
    first.t_ = max(float(each.t_) for each in estimators)  # the learning rate goes on falling
    return first


def _is_like(one: object, other: object) -> bool:
    array, like = np.asarray(one), np.asarray(other)
    numbers = array.dtype.kind in "fiu" and array.shape == like.shape
    return bool(numbers and np.isfinite(array).all())


def with_classes(estimator: Any, classes: Sequence[float | str]) -> Any:
    """Gives a classifier the label's own classes instead of their numbers; in place."""
    if task_of(estimator) == "classes":
        numbers = np.asarray(estimator.classes_).astype(int)
        estimator.classes_ = np.asarray(list(classes))[numbers]
        binarizer = getattr(estimator, "_label_binarizer", None)
        if binarizer is not None:  # of a perceptron with layers, which predicts through it
            binarizer.classes_ = estimator.classes_
    return estimator
