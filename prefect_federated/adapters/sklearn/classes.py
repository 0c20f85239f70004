"""Which classes a saved model may name, and what is checked of those that compute in C.

A file is read by anybody who gets it, and may have been written by somebody else: what is not named
here, or by the reader, is never imported.
"""

import difflib
import importlib
import os
from collections.abc import Collection, Mapping

import numpy as np

from prefect_federated.adapters.sklearn.values import NotAValue

CLASSES = frozenset(
    f"sklearn.{module}.{name}"
    for module, names in {
        "cluster": "KMeans MiniBatchKMeans",
        "compose": "ColumnTransformer TransformedTargetRegressor",
        "decomposition": "IncrementalPCA",
        "impute": "SimpleImputer MissingIndicator",
        "kernel_approximation": "RBFSampler",
        "linear_model": "LinearRegression Ridge Lasso ElasticNet LogisticRegression "
        "PoissonRegressor SGDClassifier SGDRegressor SGDOneClassSVM Perceptron "
        "PassiveAggressiveClassifier PassiveAggressiveRegressor",
        "naive_bayes": "GaussianNB MultinomialNB BernoulliNB ComplementNB CategoricalNB",
        "neural_network": "MLPClassifier MLPRegressor",
        "pipeline": "Pipeline",
        "preprocessing": "StandardScaler MinMaxScaler MaxAbsScaler OneHotEncoder OrdinalEncoder "
        "LabelBinarizer LabelEncoder",
        "svm": "SVC LinearSVC LinearSVR",
    }.items()
    for name in names.split()
) | {
    "prefect_federated.adapters.sklearn.preprocessing.OriginalColumns",
    "prefect_federated.adapters.sklearn.voting.Vote",
    "prefect_federated.adapters.sklearn.voting.Calibrated",
}
"""What a saved model may name, unless whoever reads it allows more."""

DROPPED: Mapping[str, frozenset[str]] = {
    "PoissonRegressor": frozenset({"_base_loss"}),
    "SGDClassifier": frozenset({"_loss_function_"}),
    "SGDOneClassSVM": frozenset({"_loss_function_"}),
    "Perceptron": frozenset({"_loss_function_"}),
    "PassiveAggressiveClassifier": frozenset({"_loss_function_"}),
    "MLPClassifier": frozenset({"_optimizer", "_random_state"}),
    "MLPRegressor": frozenset({"_optimizer", "_random_state"}),
    "MiniBatchKMeans": frozenset({"_random_state"}),
}
"""Attributes that are made anew: by the next `partial_fit`, or by `restore`."""

_FORBIDDEN_PARAMETERS = {"memory": "a folder of pickled results"}


def path_of(estimator: object) -> str:
    """Returns the path by which a class is known, such as "sklearn.svm.SVC"."""
    kind = type(estimator)
    module = kind.__module__
    if module.startswith("sklearn."):  # where it is defined is private, and moves
        module = ".".join(module.split(".")[:2])
    return f"{module}.{kind.__qualname__}"


def find(path: str, allowed: Collection[str]) -> type:
    """Imports one of the allowed classes.

    Raises:
        NotAValue: it is not allowed, or not to be imported here.
    """
    if path not in CLASSES and path not in allowed:
        near = difflib.get_close_matches(path, CLASSES | set(allowed), n=1)
        meant = f" Near is {near[0]}." if near else ""
        raise NotAValue(f"the class {path!r} is not one that a saved model may name.{meant}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise NotAValue(f"the class {path!r} is not installed here: {error}") from error
    if not isinstance(found, type):
        raise NotAValue(f"the class {path!r} is not there in this version of its package")
    return found


def check_parameters(parameters: Mapping[str, object]) -> None:
    """Raises `NotAValue` where a parameter could make the estimator run what is not in the file."""
    for name, what in _FORBIDDEN_PARAMETERS.items():
        if parameters.get(name) is not None:
            raise NotAValue(f"the parameter {name!r} names {what}, and must be null")


def restore(estimator: object) -> None:
    """Makes what was dropped; checks arrays that compiled code takes without a look.

    Raises:
        NotAValue: shapes do not fit together.
    """
    name = type(estimator).__name__
    if name == "PoissonRegressor":
        vars(estimator)["_base_loss"] = estimator._get_loss()  # type: ignore[attr-defined]
    elif name == "SVC" and "support_vectors_" in vars(estimator):
        _check_svc(vars(estimator))
    elif name.startswith(("SGD", "Perceptron", "PassiveAggressive")) and "coef_" in vars(estimator):
        _check_steps(name, vars(estimator))
    elif name in ("KMeans", "MiniBatchKMeans") and "cluster_centers_" in vars(estimator):
        its = vars(estimator)
        centers = its["cluster_centers_"]
        _check(name, isinstance(centers, np.ndarray) and centers.dtype in (np.float64, np.float32))
        _check(name, centers.shape == (len(centers), its.get("n_features_in_")) and len(centers))
        counts = its.get("_counts", np.zeros(len(centers), centers.dtype))
        _check(name, isinstance(counts, np.ndarray) and counts.dtype == centers.dtype)
        _check(name, counts.shape == (len(centers),))
        threads = its.get("_n_threads")
        its["_n_threads"] = max(1, min(threads if type(threads) is int else 1, os.cpu_count() or 1))


def _check_svc(its: Mapping[str, object]) -> None:
    vectors, counts = its.get("support_vectors_"), its.get("_n_support")
    dual, intercept, classes = its.get("_dual_coef_"), its.get("_intercept_"), its.get("classes_")
    arrays = [vectors, counts, dual, intercept, classes, its.get("support_")]
    arrays += [its.get("_probA"), its.get("_probB")]
    _check("SVC", all(isinstance(each, np.ndarray) for each in arrays))
    vectors, counts, dual, intercept, classes, support, a, b = map(np.asarray, arrays)
    k, n = len(classes), len(vectors)
    pairs = k * (k - 1) // 2
    _check("SVC", k >= 2 and counts.shape == (k,) and (counts >= 0).all() and counts.sum() == n)
    _check("SVC", vectors.ndim == 2 and vectors.shape[1] == its.get("n_features_in_"))
    _check("SVC", its.get("shape_fit_") == (_first(its.get("shape_fit_")), vectors.shape[1]))
    _check("SVC", dual.shape == (k - 1, n) and intercept.shape == (pairs,) and len(support) == n)
    _check("SVC", a.shape == b.shape and a.shape in ((0,), (pairs,)))
    rows = _first(its.get("shape_fit_"))
    _check("SVC", its.get("kernel") in ("linear", "poly", "rbf", "sigmoid"))
    _check("SVC", "_impl" not in its and type(rows) is int)
    _check("SVC", ((support >= 0) & (support < rows)).all())
    floats = vectors.dtype == dual.dtype == intercept.dtype == np.float64
    _check("SVC", floats and counts.dtype == support.dtype == np.int32)
    _check("SVC", its.get("_sparse") is False)


def _check_steps(name: str, its: Mapping[str, object]) -> None:
    """Checks what a step of stochastic gradients writes into, of which it looks at the width."""
    coef = its.get("coef_")
    offset = its.get("offset_" if name == "SGDOneClassSVM" else "intercept_")
    classes, width = its.get("classes_"), its.get("n_features_in_")
    _check(name, isinstance(coef, np.ndarray) and isinstance(offset, np.ndarray))
    _check(name, classes is None or isinstance(classes, np.ndarray))
    coef, offset = np.asarray(coef), np.asarray(offset)
    lines = 1 if classes is None or np.asarray(classes).size == 2 else np.asarray(classes).size
    _check(name, coef.shape == ((width,) if classes is None else (lines, width)))
    _check(name, offset.shape == (lines,))
    for attribute, like in (("coef", coef), ("intercept", offset)):
        for kind in ("standard", "average"):
            value = its.get(f"_{kind}_{attribute}")
            if value is not None or its.get("average"):
                _check(name, isinstance(value, np.ndarray))
                array = np.asarray(value)
                fits = array.shape == like.shape or (lines == 1 and array.shape == (like.size,))
                _check(name, fits)


def _first(shape: object) -> object:
    return shape[0] if isinstance(shape, tuple) and shape else None


def _check(name: str, holds: object) -> None:
    if not holds:
        raise NotAValue(f"the arrays of a {name} do not fit together")
