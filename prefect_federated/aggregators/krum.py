"""Robust aggregators that choose among whole updates: Krum and Multi-Krum.

All updates of a round are in memory at once. Weights do not count: a site could lie about its own.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from prefect_federated.aggregators.alike import all_updates, reals
from prefect_federated.aggregators.mean import weighted_mean
from prefect_federated.errors import ConfigurationError, NotEnoughSites, UpdateRejected
from prefect_federated.messages import Reply, Tensor, Update

_BLOCK = 1 << 15  # elements handled at once, so that temporaries stay in the processor's cache


def krum(replies: Iterable[Reply], *, byzantine: int = 1) -> dict[str, Tensor]:
    """Takes the one update that is closest to its nearest neighbours, as it is.

    Of n updates, that with the lowest score, equation in section 4:

        s(i) = sum of ||V_i - V_j||^2 over the n - f - 2 updates j that are closest to i

    where V are all float tensors of an update, as float64, and f is `byzantine`. Integer tensors
    (counters, masks) do not count in the distance, and are those of the chosen update. An update
    with a NaN or an infinity is infinitely far from all. Ties go to the first site by name. Takes
    n * (n - 1) / 2 passes over the model.

    Args:
        replies: The updates of a round; failures do not count.
        byzantine: How many of the sites may send anything whatever, 0 or more.

    Raises:
        ConfigurationError: `byzantine` is below 0.
        NotEnoughSites: fewer than 2 * byzantine + 3 sites sent updates.
        UpdateRejected: two sites disagree on names, shapes or dtypes; there is no update; or too
            many of them hold NaN or infinity.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", section 4; the condition n >= 2 f + 3 from proposition 4.2.
    """
    return dict(_closest(replies, byzantine, 1, "krum")[0].tensors)


def multi_krum(
    replies: Iterable[Reply], *, byzantine: int = 1, chosen: int | None = None
) -> dict[str, Tensor]:
    """Averages the updates with the lowest scores of `krum`, each with the same weight.

    Args:
        replies: The updates of a round; failures do not count.
        byzantine: How many of the sites may send anything whatever, 0 or more.
        chosen: How many updates to average (m in the paper); n - byzantine if None. With 1 it is
            Krum, with n the plain mean.

    Raises:
        ConfigurationError: `byzantine` is below 0, or `chosen` is not in 1 to n.
        NotEnoughSites: fewer than 2 * byzantine + 3 sites sent updates.
        UpdateRejected: two sites disagree on names, shapes or dtypes; there is no update; or too
            many of them hold NaN or infinity.

    Source: Blanchard et al. 2017, section 5, "Multi-Krum".
    """
    best = _closest(replies, byzantine, chosen, "multi_krum")
    return weighted_mean(Update(update.tensors, site=update.site) for update in best)


def check_byzantine(byzantine: int) -> None:
    """Raises ConfigurationError if `byzantine` is no number of sites."""
    if byzantine < 0:
        raise ConfigurationError(
            f"byzantine is {byzantine}; write how many sites may send poison: 0 or more."
        )


def _closest(
    replies: Iterable[Reply], byzantine: int, chosen: int | None, name: str
) -> list[Update]:
    check_byzantine(byzantine)
    updates, forms = all_updates(replies)
    count, least = len(updates), 2 * byzantine + 3
    if count < least:
        raise NotEnoughSites(
            f"{name} with byzantine={byzantine} needs updates of at least {least} sites "
            f"(2 * byzantine + 3), and {count} sent one. Let more sites answer (quorum, "
            "min_sites), or lower byzantine."
        )
    chosen = count - byzantine if chosen is None else chosen
    if not 1 <= chosen <= count:
        raise ConfigurationError(
            f"{name} shall average {chosen} of {count} updates; write a number from 1 to {count}."
        )
    names = [name for name, (_, dtype) in forms.items() if np.issubdtype(dtype, np.inexact)]
    scores = _scores(_squared_distances(updates, names), count - byzantine - 2)
    order = np.argsort(scores, kind="stable")[:chosen]
    if not np.isfinite(scores[order]).all():
        raise UpdateRejected(
            f"{name} with byzantine={byzantine}: too many of {count} updates hold NaN, infinity or "
            "too large numbers. Has their training diverged? Lower the learning rate."
        )
    return [updates[place] for place in order]


def _squared_distances(updates: list[Update], names: list[str]) -> NDArray[np.float64]:
    """Returns `(n, n)`, float64: infinite where it is no number, and from each to itself 0."""
    count = len(updates)
    squares = np.zeros((count, count))
    with np.errstate(over="ignore", invalid="ignore"):  # such are made infinite below
        for name in names:
            rows = [reals(update.tensors[name]) for update in updates]
            size = rows[0].size
            values = np.empty((count, min(_BLOCK, size)))
            difference = np.empty(min(_BLOCK, size))
            for start in range(0, size, _BLOCK):
                width = min(_BLOCK, size - start)
                for place, row in enumerate(rows):
                    values[place, :width] = row[start : start + width]
                for one in range(count):
                    for other in range(one + 1, count):
                        part = difference[:width]
                        np.subtract(values[one, :width], values[other, :width], out=part)
                        squares[one, other] += np.dot(part, part)
    squares += squares.T
    squares[np.isnan(squares)] = math.inf
    return squares


def _scores(squares: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    others = squares.copy()
    np.fill_diagonal(others, -1)  # sorted to the front, whatever the distances
    nearest = np.sort(others, axis=1)[:, 1 : 1 + neighbours]
    return np.asarray(nearest.sum(axis=1), np.float64)
