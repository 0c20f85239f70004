"""Counts, means and variances of many columns at once, read in chunks and merged exactly.

A chunk's deviations are taken from the chunk's own means; chunks, and sites, are merged pairwise.
Means are kept to twice the digits, as a number and what rounding has left off it: else values
around 1e9 with a variance of 1 would lose half of the variance's digits when means are subtracted.

Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", equations 2.1a and 2.1b. A chunk's own sum of squares is their corrected two-pass sum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Moments:
    """What is known of some columns; each field is `(n_columns,)`, float64.

    Args:
        count: Values that are there and finite.
        missing: Values that are not there.
        infinite: Values that are +inf or -inf.
        sum: Their sum, of the finite values as all that follows.
        mean: NaN where there are none.
        rest: What rounding has left off the mean.
        m2: Sum of squared deviations from the mean.
        min: inf where there are none.
        max: -inf where there are none.
    """

    count: Floats
    missing: Floats
    infinite: Floats
    sum: Floats
    mean: Floats
    rest: Floats
    m2: Floats
    min: Floats
    max: Floats

    @classmethod
    def none(cls, columns: int) -> "Moments":
        """Returns the moments of no values."""
        zeros = np.zeros(columns)
        return cls(
            zeros, zeros, zeros, zeros, np.full(columns, np.nan), zeros, zeros,
            np.full(columns, np.inf), np.full(columns, -np.inf),
        )  # fmt: skip

    @property
    def variance(self) -> Floats:
        """With n - 1, as pandas has it; NaN for fewer than two values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.count > 1, self.m2 / (self.count - 1), np.nan)


@dataclass(frozen=True)
class Chunk:
    """Some rows, prepared once for all that is computed of them.

    Args:
        is_finite: `(n_columns, n_rows)`: whether a value is there and finite.
        is_full: Whether all values of all columns are.
        deviations: `(n_columns, n_rows)`: value minus `moments.mean`; 0 where there is none.
        moments: The chunk's own.
    """

    is_finite: Masks
    is_full: bool
    deviations: Floats
    moments: Moments


def chunk_of(values: Floats) -> Chunk:
    """Returns a chunk with its moments.

    Args:
        values: `(n_columns, n_rows)`, float64, best with contiguous rows; NaN where missing.
    """
    columns, rows = values.shape
    is_finite = np.isfinite(values)
    count = is_finite.sum(axis=1).astype(np.float64)
    is_full = bool((count == rows).all())
    if is_full:
        missing = infinite = np.zeros(columns)
        there, low, high = values, values, values
    else:
        missing = np.isnan(values).sum(axis=1).astype(np.float64)
        infinite = rows - count - missing
        there = np.where(is_finite, values, 0.0)
        low, high = np.where(is_finite, values, np.inf), np.where(is_finite, values, -np.inf)
    total = there.sum(axis=1)
    some = np.where(count > 0, count, 1.0)
    mean = total / some
    deviations = there - mean[:, None]
    if not is_full:
        deviations *= is_finite
    left = deviations.sum(axis=1)  # 0 but for the mean's rounding
    squares = np.einsum("ij,ij->i", deviations, deviations)
    moments = Moments(
        count, missing, infinite, total, np.where(count > 0, mean, np.nan), left / some,
        np.maximum(squares - left * left / some, 0.0),
        low.min(axis=1, initial=np.inf), high.max(axis=1, initial=-np.inf),
    )  # fmt: skip
    return Chunk(is_finite, is_full, deviations, moments)


def merged(one: Moments, other: Moments) -> Moments:
    """Returns the moments of two sets of rows together."""
    count = one.count + other.count
    some = np.where(count > 0, count, 1.0)
    is_here, is_there = one.count > 0, other.count > 0
    here, there = np.where(is_here, one.mean, 0.0), np.where(is_there, other.mean, 0.0)
    delta = np.where(is_here & is_there, (there - here) + (other.rest - one.rest), 0.0)
    mean, rest = renewed(here, one.rest + delta * (other.count / some))
    return Moments(
        count=count,
        missing=one.missing + other.missing,
        infinite=one.infinite + other.infinite,
        sum=one.sum + other.sum,
        mean=np.where(is_here, mean, other.mean),
        rest=np.where(is_here, rest, other.rest),
        m2=one.m2 + other.m2 + delta * delta * (one.count * other.count / some),
        min=np.minimum(one.min, other.min),
        max=np.maximum(one.max, other.max),
    )


def renewed(number: Floats, rest: Floats) -> tuple[Floats, Floats]:
    """Returns the sum of two numbers, and what rounding leaves off it.

    Source: Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    total = number + rest
    added = total - number
    return total, (number - (total - added)) + (rest - added)
