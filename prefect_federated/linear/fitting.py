"""A linear model from what the sites have sent: Gram matrices, or the rounds of Newton's method.

A site that trains alone for comparison uses the same functions with what it has computed itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
from pydantic import TypeAdapter, ValidationError

from prefect_federated.errors import ConfigurationError, ModelUndetermined
from prefect_federated.linear.gram import Gram, merge
from prefect_federated.linear.losses import Floats, Loss, Sums
from prefect_federated.linear.newton import Newton
from prefect_federated.linear.penalty import Penalty, minimum, penalty
from prefect_federated.linear.rank import check_rank
from prefect_federated.messages import JsonValue

Family: TypeAlias = Literal[
    "least_squares", "ridge", "elastic_net", "logistic", "multinomial", "poisson"
]


@dataclass(frozen=True)
class Model:
    """What is fitted.

    Args:
        family: Which model.
        loss: Of an elastic net: "squared" or "logistic".
        alpha: The penalty's weight, as scikit-learn's estimator of the family has it; for logistic
            and multinomial models it is `1 / C`.
        l1_ratio: Share of the absolute values, for the elastic net.
        classes: The label's classes; none for numbers.
    """

    family: Family
    elastic_net_loss: Literal["squared", "logistic"] = "squared"
    alpha: float = 0.0
    l1_ratio: float = 0.0
    classes: tuple[str, ...] = ()

    @property
    def loss(self) -> Loss:
        """The loss that the family has."""
        if self.family == "elastic_net":
            return self.elastic_net_loss
        if self.family in ("least_squares", "ridge"):
            return "squared"
        return self.family  # type: ignore[return-value]

    @property
    def lines(self) -> int:
        """Rows of coefficients: the classes but the first, or one."""
        return len(self.classes) - 1 if self.family == "multinomial" else 1

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the model as it travels in a call's config."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, said: JsonValue) -> "Model":
        """Reads what `to_json` has written.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            return _MODEL.validate_python(said)
        except ValidationError as error:
            raise ConfigurationError(f"config 'linear' is no model: {error}") from error

    def penalty(self, columns: int, rows: float) -> Penalty:
        """Returns the penalty on the sum of half the deviance of so many rows.

        Args:
            columns: Columns of the design, with the ones.
            rows: Rows of all sites; scikit-learn's elastic net and Poisson regression have the
                mean of the loss, its ridge and logistic regression the sum.
        """
        is_mean = self.family == "poisson" or (self.family, self.loss) == ("elastic_net", "squared")
        strength = self.alpha * (rows if is_mean else 1)
        return penalty(columns, self.lines, strength, self.l1_ratio)


_MODEL = TypeAdapter(Model)


@dataclass
class Fit:
    """What came of it, in the units of the design.

    Args:
        coefficients: "`(n_classes - 1, n_columns + 1)`", intercept first.
        covariance: Of all of them in order; None under a penalty.
        rows: Rows that it was fitted to.
        deviance: At the coefficients; for least squares, the sum of squares that is left.
        degrees: Degrees of freedom of the residuals; None where there is no such number.
        r2: Share of the label's variance that is explained, for least squares.
    """

    coefficients: Floats
    covariance: Floats | None
    rows: float
    deviance: float
    degrees: float | None = None
    r2: float | None = None


def fit_gram(model: Model, names: Sequence[str], grams: Mapping[str, Gram]) -> Fit:
    """Returns the least squares fit, with or without a penalty, of all sites' rows.

    Raises:
        ModelUndetermined: constant or collinear columns, too few rows, and no penalty.

    Source: Seber and Lee 2003, "Linear Regression Analysis", sections 3.1 and 3.11.
    """
    gram = merge(grams[site] for site in sorted(grams))
    inner, outer = gram.products[:-1, :-1], gram.products[:-1, -1]
    total = float(gram.products[-1, -1])
    under = model.penalty(len(names) + 1, gram.rows)
    if under.is_none:
        check_rank(names, inner, gram.rows)
    slopes = minimum(inner, outer, Penalty(under.absolute[1:], under.square[1:, 1:]))
    intercept = gram.means[-1] - gram.means[:-1] @ slopes
    left = max(0.0, float(total - 2 * slopes @ outer + slopes @ inner @ slopes))
    fit = Fit(
        np.concatenate([[intercept], slopes])[None],
        None,
        gram.rows,
        left,
        r2=1 - left / total if total > 0 else None,
    )
    if under.is_none:
        fit.degrees = gram.rows - len(names) - 1
        inverse = inverted(inner)
        shift = -inverse @ gram.means[:-1]
        corner = 1 / gram.rows + gram.means[:-1] @ inverse @ gram.means[:-1]
        whole = np.block([[np.array([[corner]]), shift[None]], [shift[:, None], inverse]])
        fit.covariance = whole * (left / fit.degrees)
    return fit


def search(model: Model, names: Sequence[str], rows: float) -> Newton:
    """Returns the search for the coefficients of a model that is not one of squares."""
    columns = len(names) + 1
    under = model.penalty(columns, rows)
    return Newton(model.loss, names, model.lines, under, model.lines * columns)


def fit_newton(model: Model, names: Sequence[str], found: Newton) -> Fit:
    """Returns the fit that a search has led to."""
    total: Sums = found.total
    covariance = inverted(total.curvature) if found.under.is_none else None
    shape = (model.lines, len(names) + 1)
    return Fit(found.point.reshape(shape), covariance, total.rows, total.deviance)


def inverted(matrix: Floats) -> Floats:
    """Returns the inverse of a symmetric positive definite matrix, scaled to ones meanwhile.

    Raises:
        ModelUndetermined: it is singular.
    """
    scale = 1 / np.sqrt(np.diag(matrix))
    try:
        lower = np.linalg.cholesky(matrix * scale * scale[:, None])
    except np.linalg.LinAlgError as error:
        raise ModelUndetermined(
            "the standard errors are without end: at the best coefficients some columns follow "
            "from others. Leave columns out, or choose an `alpha` above 0."
        ) from error
    half = np.linalg.solve(lower, np.eye(len(matrix))) * scale
    inverse: Floats = half.T @ half
    return inverse
