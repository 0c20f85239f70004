"""What a site computes of its own rows for a linear model: sums, at given coefficients.

Squared, logistic, multinomial and Poisson losses. All that leaves is a sum over the site's rows, so
the sites' sums add up to those of all rows together, and a Newton step from them is the one that
pooled data would give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in

Floats: TypeAlias = NDArray[np.float64]
Loss = Literal["squared", "logistic", "multinomial", "poisson"]

HIGHEST = 500.0
"""Linear predictors beyond are cut off: exp of them would soon be infinite."""


@dataclass(frozen=True)
class Sums:
    """Sums over rows at one point of the coefficients.

    Args:
        rows: Number of rows.
        deviance: Twice the loss beyond that of a model that fits each row; 0 in the first sums of
            counts, which are of no coefficients.
        gradient: Minus half the deviance's gradient, "`(n_coefficients,)`", float64.
        curvature: Half the deviance's second derivatives, "`(n_coefficients, n_coefficients)`".
    """

    rows: float
    deviance: float
    gradient: Floats
    curvature: Floats

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums as they travel."""
        scalars = np.array([self.rows, self.deviance])
        return {"scalars": scalars, "gradient": self.gradient, "curvature": self.curvature}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], size: int, site: str) -> "Sums":
        """Reads what a site has sent.

        Raises:
            UpdateRejected: it is not what a model of `size` coefficients has.
        """
        shapes = {"scalars": (2,), "gradient": (size,), "curvature": (size, size)}
        its = numbers_in(tensors, shapes, site, of="the sums'")
        rows, deviance = (float(each) for each in its["scalars"])
        if rows < 1:
            raise UpdateRejected(f"site {site!r}: its sums are of {rows} rows.")
        return cls(rows, deviance, its["gradient"], its["curvature"])


def with_ones(design: Floats) -> Floats:
    """Returns the design with a column of ones before the others, for the intercept."""
    return np.column_stack([np.ones(len(design)), design])


def sums(loss: Loss, design: Floats, label: Floats, coefficients: Floats) -> Sums:
    """Returns the sums of a Newton step.

    Args:
        loss: Which one.
        design: "`(rows, n_columns)`", with the column of ones.
        label: "`(rows,)`": 0 or 1, the class's number, or a count.
        coefficients: "`(n_classes - 1, n_columns)`"; one row but for "multinomial".

    Source: McCullagh and Nelder 1989, "Generalized Linear Models", section 2.5, for the canonical
    links, where Newton's steps and Fisher's scoring are the same; Bishop 2006, "Pattern Recognition
    and Machine Learning", equations 4.109 and 4.110 for many classes, with the first class's
    coefficients held at zero.
    """
    predictor = np.clip(design @ coefficients.T, -HIGHEST, HIGHEST)
    if loss == "multinomial":
        return _multinomial(design, label, predictor)
    single = predictor[:, 0]
    if loss == "logistic":
        signs = np.where(label > 0.5, -single, single)
        expected = _sigmoid(single)
        weights = _sigmoid(single) * _sigmoid(-single)
        deviance = 2 * float(np.logaddexp(0, signs).sum())
    elif loss == "poisson":
        expected = np.exp(single)
        weights = expected
        deviance = poisson_deviance(label, single)
    else:
        expected, weights = single, np.ones(len(label))
        deviance = float(((label - single) ** 2).sum())
    return Sums(len(label), deviance, design.T @ (label - expected), (design.T * weights) @ design)


def first_sums(design: Floats, label: Floats) -> Sums:
    """Returns the sums of the first Poisson step, which begins at each row's own count.

    From coefficients of zero a first step would overshoot by far where counts are large.

    Source: McCullagh and Nelder 1989, section 2.5, "starting values"; a half is added to each
    count, whose logarithm is taken.
    """
    start = label + 0.5
    working = np.log(start) + (label - start) / start
    weighted = design.T * start
    return Sums(len(label), 0.0, weighted @ working, weighted @ design)


def poisson_deviance(label: Floats, predictor: Floats) -> float:
    """Returns the deviance of counts from what is expected: the exponential of the predictor."""
    logs = np.log(np.where(label > 0, label, 1.0))
    terms = label * (logs - predictor) - label + np.exp(predictor)
    return 2 * float(terms.sum())


def probabilities(predictor: Floats) -> Floats:
    """Returns "`(rows, n_classes)`" probabilities from the predictors of all classes but the first.

    >>> probabilities(np.array([[0.0]])).tolist()
    [[0.5, 0.5]]
    """
    whole = np.column_stack([np.zeros(len(predictor)), predictor])
    whole = np.exp(whole - whole.max(axis=1, keepdims=True))
    scaled: Floats = whole / whole.sum(axis=1, keepdims=True)
    return scaled


def _sigmoid(values: Floats) -> Floats:
    small = np.exp(-np.abs(values))
    chance: Floats = np.where(values >= 0, 1.0, small) / (1 + small)
    return chance


def _multinomial(design: Floats, label: Floats, predictor: Floats) -> Sums:
    columns, classes = design.shape[1], predictor.shape[1]
    whole = np.column_stack([np.zeros(len(label)), predictor])
    highest = whole.max(axis=1)
    logs = highest + np.log(np.exp(whole - highest[:, None]).sum(axis=1))
    numbers = label.astype(np.intp)
    deviance = 2 * float((logs - whole[np.arange(len(label)), numbers]).sum())
    chance = np.exp(predictor - logs[:, None])
    is_class = numbers[:, None] == np.arange(1, classes + 1)
    gradient = ((is_class - chance).T @ design).ravel()
    curvature = np.empty((classes, columns, classes, columns))
    for one in range(classes):
        for other in range(one, classes):
            both = chance[:, one] * ((one == other) - chance[:, other])
            block = (design.T * both) @ design
            curvature[one, :, other] = block
            curvature[other, :, one] = block
    size = classes * columns
    return Sums(len(label), deviance, gradient, curvature.reshape(size, size))
