"""What sites do in an SVM job. `support`, and `member` with a kernel of rows, send rows.

The support vectors of an SVM are rows of its training data. They leave a site only if the job says
`share_support_vectors` and the dataset's own policy says `raw_rows: true`; each site checks both
again itself. The other site tasks send sums, weights of features, or scores.
"""

from typing import Any

import numpy as np
from sklearn.svm import SVC, LinearSVC

from prefect_federated.adapters.sklearn import measuring
from prefect_federated.adapters.sklearn.fourier import fourier
from prefect_federated.adapters.sklearn.fourier import spread as spread_of
from prefect_federated.adapters.sklearn.hinge import linear_svc
from prefect_federated.adapters.sklearn.hinge import sums as sums_of
from prefect_federated.adapters.sklearn.measuring import Encoded, Floats, encoded, measured
from prefect_federated.adapters.sklearn.saved import from_tensors, to_tensors
from prefect_federated.adapters.sklearn.voting import calibrate
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.access import allows_raw_rows, policy_of
from prefect_federated.tabular.rows import describe

_HELD_OUT = 0.2  # of a site's training rows, to calibrate its scores
_CHUNK = 20_000
moments = executor(measuring.moments)


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Returns what columns and classes the site has."""
    return describe(site)


@executor
def ready(model: Tensors, site: Site) -> Update:
    """Returns which classes the site has, whether rows may leave, and how many would.

    Returns:
        "classes" `(k,)`, bool; "permission" `()`, bool; with `site.config["rows_leave"]` "kept":
        numbers of support vectors and of rows.
    """
    here = encoded(site)
    there = np.isin(np.arange(here.classes), here.classes_here)
    said = {"classes": there, "permission": np.array(allows_raw_rows(site))}
    if site.config.get("rows_leave") and len(here.classes_here) > 1:
        fitted = _svc(site).fit(here.train, here.label)
        said["kept"] = np.array([len(fitted.support_), len(here.label)])
    return Update(said, weight=len(here.label))


@executor
def spread(model: Tensors, site: Site) -> Update:
    """Returns number, mean and squared deviations of all cells, for gamma="scale"."""
    here = encoded(site)
    return Update(spread_of(here.train), weight=len(here.label))


@executor
def sums(model: Tensors, site: Site) -> Update:
    """Returns the site's part of the linear SVM's loss, gradient and Hessian at `model["coef"]`.

    Beside them "few" `()`, bool: whether they are sums of fewer rows than `small_cell`, but some.

    Raises:
        ConfigurationError: they are, and the site's own policy sets `small_cell`.
    """
    here, coef, c = encoded(site), np.asarray(model["coef"]), site.number("C", 1.0)
    features = _features(site, here)
    total: dict[str, Floats] = {}
    for start in range(0, len(here.label), _CHUNK):
        rows = _mapped(features, here.train[start : start + _CHUNK])
        label = here.label[start : start + _CHUNK]
        part = sums_of(rows, label, here.classes, coef, c)
        total = {name: total.get(name, 0) + array for name, array in part.items()}
    inside, policy = total.pop("inside"), policy_of(site)
    few = bool(((inside > 0) & (inside < policy.small_cell)).any())
    if few and "small_cell" in policy.model_fields_set:
        raise ConfigurationError(
            f"fewer than {policy.small_cell} training rows are within the margin, and the site's "
            "own policy sets small_cell: it sends no sums of so few. Choose a smaller C, which "
            "widens the margin, or take method 'ensemble'."
        )
    total["few"] = np.array(few)
    linear = linear_svc(coef, np.arange(here.classes), c)
    metrics = measured(linear, _mapped(features, here.test), here.test_label, here.classes)
    metrics["hinge"] = float(total["loss"].sum()) / (c * len(here.label))
    return Update(total, len(here.label), metrics, metrics_weight=max(1, len(here.test_label)))


@executor
def support(model: Tensors, site: Site) -> Update:
    """Returns the support vectors of an SVM of the site's rows, with their classes.

    Raises:
        ConfigurationError: the job or the dataset's policy does not let rows leave.
    """
    _check_permission(site)
    here = encoded(site)
    fitted = _svc(site).fit(here.train, here.label)
    tensors = {"vectors": fitted.support_vectors_, "label": here.label[fitted.support_]}
    metrics = measured(fitted, here.test, here.test_label, here.classes)
    return Update(tensors, len(here.label), metrics, metrics_weight=max(1, len(here.test_label)))


@executor
def member(model: Tensors, site: Site) -> Update:
    """Returns the site's own SVM with calibrated scores, for an ensemble.

    Unless `site.config["rows_leave"]`, it is linear in the columns or in the shared Fourier
    features, and holds no row.

    Raises:
        ConfigurationError: rows would leave, and the job or the dataset's policy does not let them.
    """
    here = encoded(site)
    if site.config.get("rows_leave"):
        _check_permission(site)
        new, rows, test = _svc(site), here.train, here.test
    else:
        features = _features(site, here)
        rows, test = _mapped(features, here.train), _mapped(features, here.test)
        new = LinearSVC(C=site.number("C", 1.0), random_state=site.seed, max_iter=10_000)
    fitted = _calibrated(new, rows, here.label, site.seed)
    metrics = measured(fitted, test, here.test_label, here.classes)
    return Update(
        to_tensors(fitted), len(here.label), metrics, metrics_weight=max(1, len(here.test_label))
    )


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Returns the scores of the job's model on the site's test rows."""
    here = encoded(site)
    fitted = from_tensors(model, "the server")
    metrics = measured(fitted, here.test, here.test_label, here.classes)
    return Update({}, metrics=metrics, metrics_weight=max(1, len(here.test_label)))


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Returns the scores of an SVM with the job's kernel that the site has fitted alone."""
    here = encoded(site)
    fitted: Any = _svc(site)
    if len(here.classes_here) > 1:
        fitted.fit(here.train, here.label)
    else:  # there is nothing to learn: it says that class
        fitted = _Constant(float(here.label[0]))
    metrics = measured(fitted, here.test, here.test_label, here.classes)
    return Update({}, metrics=metrics, metrics_weight=max(1, len(here.test_label)))


class _Constant:
    def __init__(self, label: float) -> None:
        self.classes_ = np.array([label])

    def predict(self, rows: Floats) -> Floats:
        return np.repeat(self.classes_, len(rows))


def _svc(site: Site) -> SVC:
    return SVC(
        C=site.number("C", 1.0),
        kernel=str(site.config["kernel"]),
        gamma=site.number("gamma", 1.0),
        degree=int(site.number("degree", 3)),
    )


def _features(site: Site, here: Encoded) -> Any:
    """Returns the shared Fourier features; None for a linear kernel."""
    if site.config["kernel"] == "linear":
        return None
    components, seed = int(site.number("components", 500)), int(site.number("job_seed", 0))
    return fourier(site.number("gamma", 1.0), components, seed, here.train.shape[1])


def _mapped(features: Any, rows: Floats) -> Floats:
    return rows if features is None or not len(rows) else np.asarray(features.transform(rows))


def _calibrated(new: Any, rows: Floats, label: Floats, seed: int) -> Any:
    """Fits on all rows, with scores calibrated by a fit on some of them, tried on the others."""
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(label), dtype=bool)
    for each in np.unique(label):  # some of each class
        places = random.permutation(np.flatnonzero(label == each))
        held_out[places[: int(len(places) * _HELD_OUT)]] = True
    trial = type(new)(**new.get_params()).fit(rows[~held_out], label[~held_out])
    if not held_out.any():
        held_out[:] = True
    calibrated = calibrate(trial, rows[held_out], label[held_out])
    calibrated.estimator = new.fit(rows, label)
    return calibrated


def _check_permission(site: Site) -> None:
    if not site.config.get("share_support_vectors"):
        raise ConfigurationError(
            "support vectors are rows of the data, and the job does not say "
            "share_support_vectors=true; this site sends none."
        )
    if not allows_raw_rows(site):
        raise ConfigurationError(
            "support vectors are rows of the data, and the dataset's policy at this site does not "
            "say raw_rows: true; it sends none."
        )
