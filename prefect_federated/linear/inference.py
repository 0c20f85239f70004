"""Standard errors, tests and intervals of coefficients, in the features' own units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.linear.losses import Floats

INTERCEPT = "intercept"


class Coefficient(BaseModel):
    """One row of the table of coefficients.

    Args:
        name: The column's name; "intercept" for the constant.
        label_class: The class it is of, against the first one; None but for many classes.
        value: In the units of the feature.
        standard_error: None under a penalty, where it has no such meaning; so are those below.
        statistic: `value / standard_error`: t for least squares, z else; None, as are those below,
            where the standard error is 0, because the model fits each row.
        p_value: Of the two-sided test that it is zero.
        low: Lower end of the interval.
        high: Upper end.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    label_class: str | None = None
    value: float
    standard_error: float | None = Field(default=None)
    statistic: float | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Units:
    """How the design's columns came of the features: `(feature - center) / scale`.

    Args:
        names: The columns' names, without the intercept.
        center: "`(n_columns,)`"; 0 where a column was not moved.
        scale: "`(n_columns,)`"; 1 where it was not scaled.
    """

    names: Sequence[str]
    center: Floats
    scale: Floats

    @property
    def back(self) -> Floats:
        """The matrix that takes coefficients, intercept first, into the features' own units."""
        size = len(self.names) + 1
        matrix = np.zeros((size, size))
        matrix[0, 0] = 1
        matrix[0, 1:] = -self.center / self.scale
        matrix[np.arange(1, size), np.arange(1, size)] = 1 / self.scale
        return matrix


def table(
    units: Units,
    coefficients: Floats,
    covariance: Floats | None,
    *,
    degrees: float | None = None,
    level: float = 0.95,
    classes: Sequence[str] = (),
) -> list[Coefficient]:
    """Returns the table of coefficients in the features' own units.

    Args:
        units: The columns.
        coefficients: In the design's units, "`(n_classes - 1, n_columns + 1)`", intercept first.
        covariance: Theirs, of all of them in order; None under a penalty.
        degrees: Degrees of freedom of Student's t; None for the normal distribution.
        level: Of the intervals.
        classes: The classes' names, the first among them, for many classes.

    Source: Seber and Lee 2003, "Linear Regression Analysis", section 3.8, equation 4.10; Wald's
    tests for the others, as McCullagh and Nelder 1989, section 4.4, have them.
    """
    back = units.back
    values = (coefficients @ back.T).ravel()
    errors: Floats | None = None
    if covariance is not None:
        whole = np.kron(np.eye(len(coefficients)), back)
        errors = np.sqrt(np.einsum("ij,jk,ik->i", whole, covariance, whole))
    rows = []
    labels = classes[1:] if len(classes) > 2 else [None]
    names = [INTERCEPT, *units.names]
    for place, value in enumerate(values):
        row = Coefficient(
            name=names[place % len(names)], label_class=labels[place // len(names)], value=value
        )
        if errors is not None:
            row = _tested(row, float(errors[place]), degrees, level)
        rows.append(row)
    return rows


def _tested(row: Coefficient, error: float, degrees: float | None, level: float) -> Coefficient:
    from scipy import stats

    if error == 0:  # the model fits each row
        return row.model_copy(update={"standard_error": 0.0})
    known = stats.norm if degrees is None else stats.t(degrees)
    statistic = row.value / error
    reach = float(known.ppf((1 + level) / 2)) * error
    return row.model_copy(
        update={
            "standard_error": error,
            "statistic": statistic,
            "p_value": float(2 * known.sf(abs(statistic))),
            "low": row.value - reach,
            "high": row.value + reach,
        }
    )


def shown(rows: Sequence[Coefficient], level: float) -> list[list[str]]:
    """Returns the table as people read it: a row of names, then the others."""
    has_classes = any(row.label_class is not None for row in rows)
    has_errors = any(row.standard_error is not None for row in rows)
    head = ["coefficient", *(["class"] if has_classes else []), "value"]
    if has_errors:
        head += ["standard error", "statistic", "p", f"{level:.0%} interval"]
    lines = [head]
    for row in rows:
        cells = [row.name, *([str(row.label_class)] if has_classes else []), f"{row.value:.6g}"]
        if has_errors:
            cells += [_text(row.standard_error, ".4g"), _text(row.statistic, ".3f")]
            cells += [_text(row.p_value, ".3g")]
            cells.append("" if row.low is None else f"{row.low:.4g} to {row.high:.4g}")
        lines.append(cells)
    return lines


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
