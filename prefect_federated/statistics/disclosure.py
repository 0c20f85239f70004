"""Whether sums, means, variances and products of a column tell of single rows.

A sum over many rows is one person's value if all others are the same, or if a sum over all of them
but that one is known, too.
"""

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.schema import CoMoments, Summary, Withheld

_ROUNDING = 1e-9


def rows_of_rarer_value(summary: Summary) -> float | None:
    """Returns how many rows have the rarer one of two values; None if there are not just two.

    A column has two values exactly if its variance is the largest that its mean, minimum and
    maximum allow.

    Source: Bhatia and Davis 2000, "A Better Bound on the Variance": equality holds only there.
    """
    count, mean, variance = summary.count, summary.mean, summary.variance
    low, high = summary.min, summary.max
    if count is None or mean is None or variance is None or low is None or high is None:
        return None
    if high <= low:
        return None
    largest = count * (mean - low) * (high - mean)
    if not math.isclose(variance * (count - 1), largest, rel_tol=_ROUNDING):
        return None
    upper = round(count * (mean - low) / (high - low))
    return float(min(upper, count - upper))


def reason_against_moments(summary: Summary, policy: PrivacyPolicy) -> str | None:
    """Returns why a column's sum, mean and variance are withheld; None if they need not be.

    Args:
        summary: Exact.
        policy: The site's; its `small_cell` says of how many rows a sum may at least tell.
    """
    least = policy.small_cell
    if least <= 1 or not summary.variance or not summary.count:
        return None
    rarer = rows_of_rarer_value(summary)
    if rarer is not None:
        if rarer < least:
            return f"all but fewer than {least} rows have the same value"
        return None
    if summary.min is None or summary.max is None or summary.mean is None:
        return "the site did not compute its range, which says whether single rows stand out"
    furthest = max(summary.max - summary.mean, summary.mean - summary.min)
    if furthest**2 * least > summary.variance * (summary.count - 1):
        return f"a single row makes up more than 1/{least} of its spread"
    return None


def releasable_pairs(
    pairs: CoMoments, summaries: Mapping[str, Summary], usable: set[str], policy: PrivacyPolicy
) -> NDArray[np.bool_]:
    """Returns which pairs of columns may be released, `(n_columns, n_columns)`.

    Of a column i, its own mean and those over the rows where another column is there tell the sum
    over the rows in which these differ. So they are the same rows, or differ by `minimum_rows`.

    Args:
        pairs: Exact.
        summaries: The columns' own, exact.
        usable: Columns whose own mean and variance are released.
        policy: The site's.
    """
    columns = range(len(pairs.columns))
    usable = usable & summaries.keys()
    released = np.zeros((len(columns), len(columns)), bool)
    fine = [name in usable and _varies(summaries[name], policy) for name in pairs.columns]
    for i in columns:
        if not fine[i]:
            continue
        own = summaries[pairs.columns[i]]
        if own.count is None or own.mean is None:
            continue
        told = [(own.count, own.mean)]
        others = sorted((j for j in columns if fine[j]), key=lambda j: -(pairs.n[i][j] or 0))
        for j in others:
            n, mean = pairs.n[i][j], pairs.mean[i][j]
            if n is None or mean is None or n < policy.minimum_rows:
                continue
            if all(_is_same_or_far(n, mean, *other, policy.minimum_rows) for other in told):
                released[i, j] = True
                told.append((n, mean))
    return released & released.T


def of_columns(pairs: CoMoments, columns: Container[str]) -> CoMoments:
    """Returns the products of some of the columns only."""
    places = [place for place, name in enumerate(pairs.columns) if name in columns]

    def some(table: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return [[table[i][j] for j in places] for i in places]

    return CoMoments(
        columns=[pairs.columns[place] for place in places],
        n=some(pairs.n),
        mean=some(pairs.mean),
        m2=some(pairs.m2),
        m=some(pairs.m),
        mean_rest=None if pairs.mean_rest is None else some(pairs.mean_rest),
        withheld=pairs.withheld,
    )


def released_pairs(
    exact: CoMoments, summaries: Mapping[str, Summary], usable: set[str], policy: PrivacyPolicy
) -> CoMoments:
    """Returns the products of columns without the pairs that are withheld.

    Args as those of `releasable_pairs`.
    """
    released = releasable_pairs(exact, summaries, usable, policy)

    def some(table: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return [
            [value if released[i, j] else None for j, value in enumerate(row)]
            for i, row in enumerate(table)
        ]

    lines = []
    if not released.all():
        why = (
            f"fewer than {policy.minimum_rows} rows hold both columns, or may hold one of them "
            "alone, or a column's own variance is withheld"
        )
        lines = [Withheld(what="some correlations", reason=why)]
    return CoMoments(
        columns=exact.columns,
        n=some(exact.n),
        mean=some(exact.mean),
        m2=some(exact.m2),
        m=some(exact.m),
        mean_rest=None if exact.mean_rest is None else some(exact.mean_rest),
        withheld=[*exact.withheld, *lines],
    )


def _is_same_or_far(n: float, mean: float, other: float, its_mean: float, least: float) -> bool:
    if least <= 1:
        return True
    if n == other:
        return math.isclose(mean, its_mean, rel_tol=_ROUNDING, abs_tol=1e-300)
    return abs(n - other) >= least


def _varies(summary: Summary, policy: PrivacyPolicy) -> bool:
    rarer = rows_of_rarer_value(summary)
    return rarer is None or rarer >= policy.minimum_rows
