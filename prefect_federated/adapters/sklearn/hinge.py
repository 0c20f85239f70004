"""A linear SVM whose loss, gradient and Hessian are sums over sites, and the server's Newton steps.

F(w, b) = 1/2 ||w||^2 + C sum_i max(0, 1 - y_i (w'x_i + b))^2 for each class against the others. The
loss is convex with a piecewise constant Hessian, so that Newton's steps end at the optimum of the
pooled rows, to rounding.

Source: Mangasarian 2002, "A finite Newton method for classification", algorithm 2.1; the loss is
that of Keerthi and DeCoste 2005, "A modified finite Newton method for fast solution of large scale
linear SVMs", equation 2. Unlike there, the offset b is not penalized.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.svm import LinearSVC

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in

Floats = NDArray[np.float64]

_HALVINGS = 40
_ENOUGH = 1e-4  # of the decrease that the gradient promises: Armijo's rule
_RIDGE = 1e-10  # on the offset, which no row within the margin may hold


def sums(rows: Floats, label: Floats, classes: int, coef: Floats, c: float) -> dict[str, Tensor]:
    """Returns a site's part of loss, gradient and Hessian at `coef`, without the penalty.

    Args:
        rows: `(n_rows, d)`, float64.
        label: `(n_rows,)`: numbers of classes.
        classes: How many classes all sites have.
        coef: `(k, d + 1)`: k is 1 for two classes; the last column is the offset.
        c: The loss's weight, C.

    Returns:
        "loss" `(k,)`, "gradient" `(k, d + 1)`, "hessian" `(k, (d + 1)(d + 2) / 2)`: the lower
        triangles, row by row; and "inside" `(k,)`: of how many rows they are sums.
    """
    design = np.hstack([rows, np.ones((len(rows), 1))])
    k, width = coef.shape
    triangle = np.tril_indices(width)
    loss, gradient, hessian = np.zeros(k), np.zeros((k, width)), np.zeros((k, len(triangle[0])))
    counts = np.zeros(k)
    for j in range(k):
        sign = np.where(label == (1 if classes == 2 else j), 1.0, -1.0)
        short = 1 - sign * (design @ coef[j])
        inside = short > 0
        near, counts[j] = design[inside], inside.sum()
        loss[j] = c * np.square(short[inside]).sum()
        gradient[j] = -2 * c * near.T @ (sign[inside] * short[inside])
        hessian[j] = (2 * c * near.T @ near)[triangle]
    return {"loss": loss, "gradient": gradient, "hessian": hessian, "inside": counts}


def fit(rows: Floats, label: Floats, classes: int, c: float, steps: int = 60) -> Floats:
    """Returns the optimum's `coef` for rows that are all in one place."""
    newton = Newton.start(classes, rows.shape[1])
    for _ in range(steps):
        if newton.is_done:
            break
        newton = newton.after({"": sums(rows, label, classes, newton.coef, c)})
    return newton.best


class Newton:
    """The server's side: where the sites compute next, and the best point so far.

    Args:
        state: "coef", where the sites compute next; "best", "value", "slope" and "step" of the
            point from which it was reached, "halvings" tried from there, and "done"; a row a
            class each. It is what a snapshot holds.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)

    @classmethod
    def start(cls, classes: int, features: int) -> "Newton":
        """Returns the beginning, at 0."""
        k = 1 if classes == 2 else classes
        zeros = np.zeros((k, features + 1))
        flat = np.zeros(k)
        return cls(
            {
                "coef": zeros, "best": zeros, "step": zeros, "value": np.full(k, np.inf),
                "slope": flat, "halvings": flat, "done": flat,
            }
        )  # fmt: skip

    @property
    def coef(self) -> Floats:
        """Where the sites compute next, `(k, d + 1)`."""
        return np.asarray(self.state["coef"])

    @property
    def best(self) -> Floats:
        """The point with the smallest loss so far, `(k, d + 1)`."""
        return np.asarray(self.state["best"])

    @property
    def is_done(self) -> bool:
        """Whether no class gets better any more."""
        return bool(np.asarray(self.state["done"]).all())

    def elsewhere(self) -> "Newton":
        """Returns the state for other rows, such as without a site: it goes on from where it is."""
        zeros = np.zeros(len(self.coef))
        infinite = np.full(len(self.coef), np.inf)
        changed = {"value": infinite, "slope": zeros, "halvings": zeros, "done": zeros}
        return Newton({**self.state, **changed})

    def after(self, sites: Mapping[str, Mapping[str, Tensor]]) -> "Newton":
        """Returns the state after the sites have answered at `coef`.

        Args:
            sites: Site -> what `sums` gave there; added in the order of the names.

        Raises:
            UpdateRejected: their numbers are not finite, of other shapes, or no sums of squares.
        """
        total = _added(sites, self.coef.shape)
        new = {name: np.array(array) for name, array in self.state.items()}
        for j in range(len(self.coef)):
            if not new["done"][j]:
                one = {name: array[j] for name, array in total.items()}
                _step(new, j, one["loss"], one["gradient"], one["hessian"])
        return Newton(new)


def _step(s: dict[str, Floats], j: int, loss: Floats, gradient: Floats, lower: Floats) -> None:
    at = s["coef"][j]
    penalty = np.append(np.ones(len(at) - 1), 0.0)
    value = float(loss + 0.5 * np.sum(penalty * at**2))
    share = 0.5 ** s["halvings"][j]
    tolerance = 1e-13 * max(1.0, abs(value))
    if value > s["value"][j] + _ENOUGH * share * s["slope"][j] + tolerance:
        s["halvings"][j] += 1  # too far: half as far from the best point
        s["coef"][j] = s["best"][j] - 0.5 ** s["halvings"][j] * s["step"][j]
        if s["halvings"][j] > _HALVINGS:
            s["done"][j], s["coef"][j] = 1, s["best"][j]
        return
    gradient = gradient + penalty * at
    hessian = np.diag(np.maximum(penalty, _RIDGE))
    hessian[np.tril_indices(len(at))] += lower  # all that a Cholesky decomposition reads
    try:
        step = cho_solve(cho_factor(hessian, lower=True), gradient)
    except np.linalg.LinAlgError as error:
        raise UpdateRejected(
            "the sites' Hessians together are not positive definite, as sums of squares are. Let "
            "all sites run the same version of this package."
        ) from error
    slope = float(gradient @ step)
    s["best"][j], s["value"][j], s["slope"][j] = at, value, -slope
    s["step"][j], s["halvings"][j] = step, 0
    if slope <= 1e-13 * max(1.0, abs(value)):
        s["done"][j] = 1
    else:
        s["coef"][j] = at - step


def _added(sites: Mapping[str, Mapping[str, Tensor]], shape: tuple[int, ...]) -> dict[str, Floats]:
    k, width = shape
    shapes = {"loss": (k,), "gradient": (k, width), "hessian": (k, width * (width + 1) // 2)}
    total = {name: np.zeros(its) for name, its in shapes.items()}
    for site in sorted(sites):
        its = numbers_in(sites[site], shapes, site, not_negative=("loss",), of="the sums'")
        for name, array in its.items():
            total[name] += array
    return total


def linear_svc(coef: Floats, classes: Tensor, c: float) -> LinearSVC:
    """Returns scikit-learn's object for the optimum.

    Args:
        coef: `(k, d + 1)`, the last column the offset.
        classes: `(n_classes,)`, what it predicts.
        c: The loss's weight, C.
    """
    made = LinearSVC(C=c)
    made.coef_, made.intercept_ = coef[:, :-1].copy(), coef[:, -1].copy()
    made.classes_, made.n_features_in_, made.n_iter_ = classes, coef.shape[1] - 1, 0
    return made
