"""A site's encoded rows, and what a fitted estimator is worth on them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_federated.executors import Site
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.encoding import Encoding, answer_moments
from prefect_federated.tabular.question import Objective
from prefect_federated.tabular.rows import load_rows, schema_in
from prefect_federated.tabular.scores import scores

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """A site's rows as all sites encode them.

    Args:
        train: `(n_rows, d)`, float64.
        label: `(n_rows,)`: numbers of classes, or values.
        test: `(n_test, d)`.
        test_label: `(n_test,)`.
        classes: How many classes all sites have; 0 if the label has none.
    """

    train: Floats
    label: Floats
    test: Floats
    test_label: Floats
    classes: int

    @property
    def classes_here(self) -> NDArray[np.int64]:
        """Numbers of the classes of the training rows, sorted."""
        return np.unique(self.label.astype(np.int64))


def encoded(site: Site) -> Encoded:
    """Returns the site's rows in the job's encoding.

    Raises:
        ConfigurationError: the site's policy lets nothing be trained on them.
        DatasetUnreadable: they cannot be read.
    """
    rows, classes = load_rows(site), len(schema_in(site.config).classes)
    encoding = Encoding.from_json(site.config["encoding"])
    return Encoded(
        encoding.transform(rows.train.features),
        rows.train.label,
        encoding.transform(rows.test.features),
        rows.test.label,
        classes,
    )


def moments(model: Tensors, site: Site) -> Update:
    """Returns the training rows' moments, of which the encoding is fitted."""
    return answer_moments(site)


def measured(estimator: Any, rows: Floats, label: Floats, classes: int) -> dict[str, float]:
    """Returns scores of a fitted estimator: none where there are no rows.

    Of a classifier without probabilities there is no log loss.

    Args:
        estimator: Predicts numbers of classes, or values; or clusters.
        rows: `(n_rows, d)`.
        label: `(n_rows,)`.
        classes: How many classes all sites have; 0 if it is no classifier.
    """
    if not len(rows):
        return {}
    if classes:
        return _of_classes(estimator, rows, label, classes)
    if label.size:
        return scores("regression", label, np.asarray(estimator.predict(rows), dtype=np.float64))
    if hasattr(estimator, "score"):
        return {"score": float(estimator.score(rows)) / len(rows)}
    return {}


def _of_classes(estimator: Any, rows: Floats, label: Floats, classes: int) -> dict[str, float]:
    is_calibrated = hasattr(estimator, "predict_proba")
    if is_calibrated:
        found = np.asarray(estimator.predict_proba(rows))
    elif hasattr(estimator, "decision_function"):
        found = _squashed(np.asarray(estimator.decision_function(rows)))
    else:
        predicted = np.asarray(estimator.predict(rows))
        found = (predicted[:, None] == np.asarray(estimator.classes_)[None, :]).astype(np.float64)
    chances = np.zeros((len(rows), classes))
    chances[:, np.asarray(estimator.classes_).astype(int)] = found
    objective: Objective = "binary" if classes == 2 else "multiclass"
    result = dict(scores(objective, label, chances[:, 1] if classes == 2 else chances))
    if not is_calibrated:
        result.pop("log_loss", None)
    return result


def _squashed(decision: Floats) -> Floats:
    """Returns numbers from 0 to 1 in the order of the scores, `(n_rows, n_classes)`."""
    if decision.ndim == 1:
        one = 0.5 * (1 + np.tanh(0.5 * decision))
        return np.column_stack([1 - one, one])
    chances = np.exp(decision - decision.max(axis=1, keepdims=True))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))
