"""Which columns the data leave undetermined: constant ones, and those that follow from others."""

from collections.abc import Sequence

import numpy as np

from prefect_federated.errors import ModelUndetermined
from prefect_federated.linear.losses import Floats

LEAST = 1e-11
"""Share of a column's variance that must be left beside the columns before it."""


def dependent(products: Floats, scale: Floats | None = None) -> dict[int, list[int]]:
    """Returns each undetermined column, with those that it follows from; none for a constant one.

    Args:
        products: Products of the columns about their means, "`(n_columns, n_columns)`".
        scale: What each column's sum of squares is compared with, to tell a constant column.

    >>> dependent(np.array([[1.0, 2.0], [2.0, 4.0]]))
    {1: [0]}
    """
    squares = np.diag(products)
    least = LEAST * LEAST if scale is None else np.maximum(LEAST * LEAST, LEAST * scale)
    is_constant = squares <= least
    root = np.sqrt(np.where(is_constant, 1, squares))
    correlations = products / root / root[:, None]
    found: dict[int, list[int]] = {}
    kept: list[int] = []
    for column in range(len(products)):
        if is_constant[column]:
            found[column] = []
            continue
        if kept:
            with_kept = correlations[kept, column]
            weights = np.linalg.solve(correlations[np.ix_(kept, kept)], with_kept)
            if 1 - with_kept @ weights < LEAST:
                largest = np.abs(weights).max()
                found[column] = [
                    other
                    for other, weight in zip(kept, weights, strict=True)
                    if abs(weight) > 1e-6 * largest
                ]
                continue
        kept.append(column)
    return found


def check_rank(
    names: Sequence[str], products: Floats, rows: float, scale: Floats | None = None
) -> None:
    """Refuses columns from which no single best model follows.

    Raises:
        ModelUndetermined: names each constant column, and each that follows from others.
    """
    if rows <= len(names) + 1:
        raise ModelUndetermined(
            f"{rows:.0f} rows in all, and {len(names) + 1} coefficients: there must be more rows "
            "than coefficients. Name fewer `features`, or choose the family 'ridge'."
        )
    found = dependent(products, scale)
    if not found:
        return
    said = []
    for column, others in found.items():
        if others:
            listed = ", ".join(repr(names[each]) for each in others)
            said.append(f"{names[column]!r} follows from {listed}")
        else:
            said.append(f"{names[column]!r} has the same value in all rows")
    raise ModelUndetermined(
        f"no single model fits best: {'; '.join(said)}. Name `features` without "
        f"{', '.join(repr(names[column]) for column in found)}, or choose a penalty: the family "
        "'ridge', or an `alpha` above 0."
    )
