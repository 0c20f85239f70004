"""Minima and maxima that leave a site: moved outwards by what nobody can average away.

How far depends on the site's secret key and on the value itself, so that the same value gives the
same number in each job, each group and each split; asking again tells nothing new.
"""

import hashlib
import hmac
import math


def moved_outwards(
    low: float, high: float, spread: float, share: float, key: bytes, column: str
) -> tuple[float, float]:
    """Returns a minimum and a maximum between which the true ones lie.

    Args:
        low: The true minimum.
        high: The true maximum.
        spread: The column's range over the whole split, also where `low` and `high` are a group's.
        share: Of the range, at most; 0 leaves them as they are.
        key: The site's secret.
        column: The column, with its dataset.
    """
    if share == 0 or spread <= 0 or not math.isfinite(spread):
        return low, high
    # A power of two, so that a new maximum does not move the minimum by a little, which would tell
    # how far away it is.
    unit = share * 2.0 ** math.floor(math.log2(spread))
    return low - unit * _fraction(key, column, "min", low), high + unit * _fraction(
        key, column, "max", high
    )


def _fraction(key: bytes, column: str, which: str, value: float) -> float:
    """Returns a number in (0, 1] that only the key tells from the value."""
    message = "\0".join((column, which, value.hex())).encode()
    digest = hmac.digest(key, message, hashlib.sha256)
    return (int.from_bytes(digest[:8], "big") + 1) / 2**64
