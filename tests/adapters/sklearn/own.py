"""An estimator of a job's own, and the executor by which a site allows it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin

Floats = NDArray[np.float64]


class Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts the mean of all labels that it has seen, plus a shift."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def fit(self, rows: Floats, label: Floats) -> "Mean":
        """Begins anew with these labels."""
        self.sum_, self.rows_ = 0.0, 0
        return self.partial_fit(rows, label)

    def partial_fit(self, rows: Floats, label: Floats) -> "Mean":
        """Takes the labels in."""
        self.sum_ = getattr(self, "sum_", 0.0) + float(label.sum())
        self.rows_ = getattr(self, "rows_", 0) + len(label)
        return self

    def predict(self, rows: Any) -> Floats:
        """Returns the same for each row."""
        return np.full(len(rows), self.sum_ / self.rows_ + self.shift)
