"""The weighted mean: one update in memory at a time, and the same bits in any order."""

import math
from collections.abc import Iterable

import numpy as np

from prefect_federated.aggregators.alike import Forms, check_alike, forms_of, reals, write
from prefect_federated.aggregators.exact_sum import ExactSum
from prefect_federated.errors import UpdateRejected
from prefect_federated.memory import empty
from prefect_federated.messages import Reply, SiteFailure, Tensor, Update


def weighted_mean(replies: Iterable[Reply]) -> dict[str, Tensor]:
    """Averages the sites' tensors, each weighted by its update's `weight`.

    The result is the same, to the last bit, in whatever order the updates come: each tensor's sum
    is exact (`exact_sum.ExactSum` says of what), and so is that of the weights; each is rounded to
    float64, and their quotient to the tensor's own dtype.

    Reads each update once, and keeps 8 bytes for each element of a tensor (16 for float64 and
    complex64, 32 for complex128), so memory does not grow with the number of sites. Failures among
    the replies do not count. Integer tensors are rounded to the nearest, and are exact up to 2**53;
    every result has its tensor's own shape and dtype.

    Raises:
        UpdateRejected: two sites disagree on names, shapes or dtypes; a weight is not above 0; a
            tensor holds a NaN or an infinity; or there is no update at all.

    Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", Algorithm 1, last line of the server's loop.
    """
    forms: Forms = {}
    sums: dict[str, ExactSum] = {}
    weights: list[float] = []
    for reply in replies:
        if isinstance(reply, SiteFailure):
            continue
        if not 0 < reply.weight < math.inf:
            raise UpdateRejected(
                f"site {reply.site!r} sent the weight {reply.weight}; it must be above 0."
            )
        if weights:
            check_alike(reply, forms)
        else:
            forms = forms_of(reply)
            sums = {name: _sum_for(*form) for name, form in forms.items()}
        _add(sums, reply)
        weights.append(float(reply.weight))
        del reply  # before the next one is received: it may hold as much memory as the model
    if not weights:
        raise UpdateRejected("no site sent an update; there is nothing to average.")
    try:
        total = math.fsum(weights)  # exact, then rounded: in any order the same
    except OverflowError:
        raise UpdateRejected(
            "the sum of the sites' weights is beyond what float64 holds."
        ) from None
    return {name: _divided(sums.pop(name), total, *forms[name]) for name in forms}


def _sum_for(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> ExactSum:
    parts = reals(np.empty(0, dtype)).dtype
    is_complex = np.issubdtype(dtype, np.complexfloating)
    is_short = np.issubdtype(parts, np.floating) and parts.itemsize <= np.dtype("f4").itemsize
    return ExactSum(math.prod(shape) * (2 if is_complex else 1), is_short=is_short)


def _add(sums: dict[str, ExactSum], update: Update) -> None:
    for name, array in update.tensors.items():
        try:
            sums[name].add(reals(array), float(update.weight))
        except FloatingPointError:
            raise UpdateRejected(
                f"site {update.site!r}: tensor {name!r} holds a NaN, an infinity, or numbers that "
                "are too large to be summed. Has its training diverged? Lower the learning rate."
            ) from None


def _divided(
    total: ExactSum, weight: float, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Tensor:
    result = empty(shape, dtype)
    target = reals(result)
    for start, part in total.blocks():
        np.divide(part, weight, out=part)
        write(target[start : start + part.size], part)
    return result
