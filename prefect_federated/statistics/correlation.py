"""Correlations of all pairs of columns, each over the rows where both are there.

A chunk's sums of products are four matrix products of deviations and masks, which BLAS does at full
speed; chunks, and sites, are merged pairwise, so that no digit is lost on large values.

Source: Chan, Golub, LeVeque 1979, equation 2.1b; for products of two columns as Pebay 2008,
"Formulas for Robust, One-Pass Parallel Computation of Covariances and Arbitrary-Order Statistical
Moments", equation 3.1. What is missing is left out pair by pair, as pandas' `DataFrame.corr` does.
"""

from dataclasses import dataclass

import numpy as np

from prefect_federated.statistics.moments import Chunk, Floats, renewed


@dataclass(frozen=True)
class Products:
    """Sums over the rows where columns i and j are both there; each is `(n_columns, n_columns)`.

    Args:
        n: Such rows.
        mean: Mean of i there.
        rest: What rounding has left off the mean.
        m2: Sum of squared deviations of i there.
        m: Sum of products of the deviations of i and j.
    """

    n: Floats
    mean: Floats
    rest: Floats
    m2: Floats
    m: Floats

    @classmethod
    def none(cls, columns: int) -> "Products":
        """Returns the sums over no rows."""
        zeros = np.zeros((columns, columns))
        return cls(zeros, zeros, zeros, zeros, zeros)


def products_of(chunk: Chunk) -> Products:
    """Returns the sums over a chunk's rows."""
    deviations, center = chunk.deviations, np.nan_to_num(chunk.moments.mean)
    columns, rows = deviations.shape
    cross = deviations @ deviations.T
    if chunk.is_full:
        n = np.full((columns, columns), float(rows))
        sums = np.repeat(deviations.sum(axis=1)[:, None], columns, axis=1)
        squares = np.repeat(np.diag(cross)[:, None], columns, axis=1)
    else:
        there = chunk.is_finite.astype(np.float64)
        n = there @ there.T
        sums = deviations @ there.T
        squares = np.square(deviations) @ there.T
    some = np.where(n > 0, n, 1.0)
    return Products(
        n=n,
        mean=np.where(n > 0, center[:, None], 0.0),
        rest=sums / some,
        m2=np.maximum(squares - sums * sums / some, 0.0),
        m=cross - sums * sums.T / some,
    )


def merged(one: Products, other: Products) -> Products:
    """Returns the sums over two sets of rows together."""
    n = one.n + other.n
    some = np.where(n > 0, n, 1.0)
    is_here = one.n > 0
    apart = (other.mean - one.mean) + (other.rest - one.rest)
    delta = np.where(is_here & (other.n > 0), apart, 0.0)
    mean, rest = renewed(one.mean, one.rest + delta * (other.n / some))
    weight = one.n * other.n / some
    return Products(
        n=n,
        mean=np.where(is_here, mean, other.mean),
        rest=np.where(is_here, rest, other.rest),
        m2=one.m2 + other.m2 + delta * delta * weight,
        m=one.m + other.m + delta * delta.T * weight,
    )


def correlations(products: Products) -> Floats:
    """Returns Pearson correlations, `(n_columns, n_columns)`; NaN where there is none.

    There is none over fewer than two rows, or where a column does not vary.
    """
    scale = np.sqrt(products.m2) * np.sqrt(products.m2.T)
    # Of a column that does not vary, rounding leaves something that is no variance.
    noise = np.sqrt(products.n) * np.abs(products.mean) * np.finfo(np.float64).eps
    is_known = (
        (products.n > 1) & (np.sqrt(products.m2) > noise) & (np.sqrt(products.m2.T) > noise.T)
    )
    values = np.where(is_known, products.m / np.where(is_known, scale, 1.0), np.nan)
    values = np.clip(values, -1.0, 1.0)
    return np.where(np.eye(len(values), dtype=bool) & is_known, 1.0, values)
