"""Robust aggregators that look at each element of the tensors by itself: median, trimmed mean.

All updates of a round are in memory at once. Weights do not count: a site could lie about its own.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from prefect_federated.aggregators.alike import all_updates, reals, write
from prefect_federated.errors import ConfigurationError, NotEnoughSites, UpdateRejected
from prefect_federated.memory import empty
from prefect_federated.messages import Reply, Tensor, Update

_ELEMENTS = 1 << 16  # sorted at once, over all sites


def median(replies: Iterable[Reply]) -> dict[str, Tensor]:
    """Takes the median over the sites of each element: fewer than half of them cannot move it far.

    Of an even number of updates, the mean of the two in the middle. Complex numbers are taken by
    their real and imaginary parts; means of integers are rounded to the nearest; every result has
    its tensor's own shape and dtype. A NaN counts as an infinity. The same bits in any order.

    Raises:
        UpdateRejected: two sites disagree on names, shapes or dtypes; there is no update; or so
            many hold NaN or infinity that the median does.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", definition 1 and Algorithm 1, option I.
    """
    updates, forms = all_updates(replies)
    middle = slice((len(updates) - 1) // 2, len(updates) // 2 + 1)
    return {name: _by_element(updates, name, lambda ordered: ordered[middle]) for name in forms}


def trimmed_mean(replies: Iterable[Reply], *, trim: float = 0.2) -> dict[str, Tensor]:
    """Averages over the sites each element without its largest and its smallest values.

    Of n updates, ceil(trim * n) values are left out at each end, so that as many sites cannot
    move the result far. Complex numbers are taken by their real and imaginary parts; integers are
    rounded to the nearest; every result has its tensor's own shape and dtype. A NaN counts as an
    infinity. The same bits in any order.

    Args:
        replies: The updates of a round; failures do not count.
        trim: Share of the updates to leave out at each end: 0 or more, below 0.5.

    Raises:
        ConfigurationError: `trim` is out of its range.
        NotEnoughSites: nothing would be left to average.
        UpdateRejected: two sites disagree on names, shapes or dtypes; there is no update; or more
            of them hold NaN or infinity than are left out.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", definition 2 and Algorithm 1, option II, where `trim` is beta.
    """
    check_trim(trim)
    updates, forms = all_updates(replies)
    cut = math.ceil(trim * len(updates) - 1e-9)  # 0.07 * 100 is 7.000000000000001
    kept = slice(cut, len(updates) - cut)
    if cut * 2 >= len(updates):
        raise NotEnoughSites(
            f"trimmed_mean with trim={trim} leaves out {cut} of {len(updates)} updates at each "
            "end: nothing is left. Lower trim, or let more sites answer (quorum, min_sites)."
        )
    return {name: _by_element(updates, name, lambda ordered: ordered[kept]) for name in forms}


def check_trim(trim: float) -> None:
    """Raises ConfigurationError if `trim` is no share of the updates that can be left out twice."""
    if not 0 <= trim < 0.5:
        raise ConfigurationError(
            f"trim is {trim}; write 0 or more and less than 0.5, the share of the updates to leave "
            "out at each end."
        )


def _by_element(updates: list[Update], name: str, chosen: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the mean of what is chosen among each element's sorted values (rows: the sites)."""
    rows = [reals(update.tensors[name]) for update in updates]
    form = updates[0].tensors[name]
    result = empty(form.shape, form.dtype)
    target = reals(result.reshape(-1))
    block = max(_ELEMENTS // len(rows), 1)
    buffer = np.empty((len(rows), min(block, target.size)), target.dtype)
    for start in range(0, target.size, block):
        part = target[start : start + block]
        values = buffer[:, : part.size]
        for row, source in zip(values, rows, strict=True):
            row[...] = source[start : start + block]
        if np.issubdtype(values.dtype, np.inexact):
            np.add(values, 0, out=values)  # no -0.0, which a sort leaves where it came
        values.sort(axis=0)
        few = chosen(values)
        if len(few) == 1:
            part[...] = few[0]
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # looked for below
                write(part, np.asarray(np.mean(few, axis=0, dtype=np.float64)))
        if not np.isfinite(part).all():
            raise UpdateRejected(
                f"too many of {len(updates)} sites hold NaN, infinity or too large a number in "
                f"tensor {name!r}. Has their training diverged? Lower the learning rate."
            )
    return result
