"""The penalty on coefficients, and the quadratic problem that each Newton step solves under it.

The smooth part has a closed form. The elastic net's absolute values are dealt with at the server,
by proximal gradient steps on the sites' summed curvature: many cheap steps for one round.
"""

import math
from dataclasses import dataclass

import numpy as np

from prefect_federated.errors import ModelUndetermined
from prefect_federated.linear.losses import Floats

MOST_STEPS = 200_000


@dataclass(frozen=True)
class Penalty:
    """`sum_j absolute |b_j| + (b' square b) / 2`, in units of the sum of half the deviance.

    Args:
        absolute: Weight of each coefficient's absolute value, "`(n_coefficients,)`"; 0 for
            intercepts.
        square: The squared part, "`(n_coefficients, n_coefficients)`".
    """

    absolute: Floats
    square: Floats

    @property
    def is_none(self) -> bool:
        """Whether nothing is penalised."""
        return not (self.absolute.any() or self.square.any())

    def value(self, at: Floats) -> float:
        """Returns the penalty of coefficients."""
        return float(self.absolute @ np.abs(at) + at @ self.square @ at / 2)


def penalty(columns: int, classes: int, strength: float, l1_ratio: float = 0.0) -> Penalty:
    """Returns the elastic net's penalty on all coefficients but the intercepts.

    Args:
        columns: Columns of the design, with the ones first.
        classes: Rows of coefficients: the classes but the first.
        strength: Weight of it all.
        l1_ratio: Share of the absolute values.

    With several classes the first one's coefficients are held at zero, and the squares are those of
    the coefficients about their mean over all classes: what scikit-learn's symmetric form has.

    Raises:
        ModelUndetermined: absolute values and more than two classes.

    Source: Zou and Hastie 2005, "Regularization and variable selection via the elastic net",
    equation 3, in scikit-learn's parameters.
    """
    if classes > 1 and l1_ratio > 0 and strength > 0:
        raise ModelUndetermined("an elastic net of more than two classes has no such form here.")
    is_free = np.zeros(columns)
    is_free[0] = 1
    shared = np.eye(classes, dtype=np.float64)
    if classes > 1:
        shared -= 1 / (classes + 1)
    square = np.asarray(np.kron(shared, np.diag(1 - is_free)), np.float64)
    absolute = np.tile(strength * l1_ratio * (1 - is_free), classes)
    return Penalty(absolute, strength * (1 - l1_ratio) * square)


def minimum(curvature: Floats, linear: Floats, under: Penalty) -> Floats:
    """Returns the `b` with the least `b' curvature b / 2 - linear' b + penalty(b)`.

    Raises:
        ModelUndetermined: the proximal steps did not settle; the columns are nearly collinear.
    """
    matrix = curvature + under.square
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), np.finfo(float).tiny))
    scaled = matrix * scale * scale[:, None]
    if not under.absolute.any():
        return scale * _solve(scaled, scale * linear)
    return scale * _proximal(scaled, scale * linear, scale * under.absolute)


def _solve(matrix: Floats, right: Floats) -> Floats:
    """Solves for positive definite matrices, and once more for the rest that rounding left."""
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], np.float64)
    found = np.zeros(len(right))
    for _ in range(2):
        rest = right - matrix @ found
        found = found + np.linalg.solve(lower.T, np.linalg.solve(lower, rest))
    return found


def _proximal(matrix: Floats, linear: Floats, absolute: Floats) -> Floats:
    """Proximal gradient steps with momentum, until the exact solution of their signs is optimal.

    Source: Beck and Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm", section 4;
    O'Donoghue and Candes 2015, "Adaptive Restart for Accelerated Gradient Schemes", equation 13:
    momentum begins anew where it points uphill. Once the signs are right, the coefficients follow
    from a linear system, which is checked by the optimality conditions.
    """
    step = 1 / float(np.linalg.eigvalsh(matrix)[-1])
    at = ahead = np.zeros(len(linear))
    pace = 1.0
    for number in range(1, MOST_STEPS + 1):
        moved = ahead - step * (matrix @ ahead - linear)
        new = np.sign(moved) * np.maximum(np.abs(moved) - step * absolute, 0)
        if (ahead - new) @ (new - at) > 0:
            pace = 1.0
        quicker = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
        ahead = new + (pace - 1) / quicker * (new - at)
        at, pace = new, quicker
        if number % 20 == 0:
            exact = _of_signs(matrix, linear, absolute, at)
            if exact is not None:
                return exact
    raise ModelUndetermined(
        f"the elastic net's coefficients did not settle in {MOST_STEPS:,} proximal steps: columns "
        "are nearly collinear. Choose a smaller l1_ratio or a larger alpha, or leave columns out."
    )


def _of_signs(matrix: Floats, linear: Floats, absolute: Floats, near: Floats) -> Floats | None:
    """Returns the solution with the signs of `near`; None if it is not the optimum."""
    is_used = (near != 0) | (absolute == 0)
    signs = np.sign(near)
    right = linear[is_used] - absolute[is_used] * signs[is_used]
    exact = np.zeros(len(near))
    exact[is_used] = _solve(matrix[np.ix_(is_used, is_used)], right)
    if ((exact * signs < 0) & (absolute > 0)).any():
        return None
    pull = np.abs(linear - matrix @ exact)
    slack = 1e-12 * (float(np.abs(linear).max()) + 1)
    return None if (pull[~is_used] > absolute[~is_used] + slack).any() else exact
