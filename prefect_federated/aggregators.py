"""Updates in, global tensors out: arithmetic without I/O."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import UpdateRejected
from prefect_federated.memory import empty
from prefect_federated.messages import Reply, SiteFailure, Tensor, Update

Sum: TypeAlias = "NDArray[np.float64] | NDArray[np.complex128]"

_BLOCK = 1 << 15  # elements handled at once, so that temporaries stay in the processor's cache


def weighted_mean(replies: Iterable[Reply]) -> dict[str, Tensor]:
    """Averages the sites' tensors, each weighted by its update's `weight`.

    Reads each update once and keeps one float64 running sum (complex128 for complex tensors), so
    memory does not grow with the number of sites. Failures among the replies do not count. Integer
    tensors are rounded to the nearest, and are exact up to 2**53; every result has its tensor's own
    shape and dtype.

    Raises:
        UpdateRejected: two sites disagree on names, shapes or dtypes; a weight is not above 0; or
            there is no update at all.

    Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", Algorithm 1, last line of the server's loop.
    """
    sums: dict[str, Sum] = {}
    dtypes: dict[str, np.dtype[np.generic]] = {}
    total = 0.0
    for reply in replies:
        if isinstance(reply, SiteFailure):
            continue
        if not 0 < reply.weight < float("inf"):
            raise UpdateRejected(
                f"site {reply.site!r} sent the weight {reply.weight}; it must be above 0."
            )
        if total == 0:
            dtypes = {name: array.dtype for name, array in reply.tensors.items()}
            sums = {name: _weighted(array, reply.weight) for name, array in reply.tensors.items()}
        else:
            _check_alike(reply, sums, dtypes)
            _add(sums, reply)
        total += reply.weight
        del reply  # before the next one is received: it may hold as much memory as the model
    if total == 0:
        raise UpdateRejected("no site sent an update; there is nothing to average.")
    return {name: _divided(sums.pop(name), total, dtypes[name]) for name in dtypes}


def _weighted(array: Tensor, weight: float) -> Sum:
    """Returns a sum that begins with one update: no zeros are written first."""
    is_complex = np.issubdtype(array.dtype, np.complexfloating)
    total: Sum = empty(array.shape, np.complex128 if is_complex else np.float64)
    for target, source in _blocks(total, array):
        target[...] = source
        np.multiply(target, weight, out=target)
    return total


def _add(sums: dict[str, Sum], update: Update) -> None:
    for name, array in update.tensors.items():
        total = sums[name]
        product = np.empty(min(_BLOCK, total.size), total.dtype)
        for target, source in _blocks(total, array):
            part = product[: target.size]
            part[...] = source  # converting first is quicker than multiplying across dtypes
            np.multiply(part, update.weight, out=part)
            np.add(target, part, out=target)


def _check_alike(
    update: Update, sums: dict[str, Sum], dtypes: dict[str, np.dtype[np.generic]]
) -> None:
    if update.tensors.keys() != sums.keys():
        odd = sorted(update.tensors.keys() ^ sums.keys())
        raise UpdateRejected(
            f"site {update.site!r} disagrees with the other sites on the tensors {odd[:5]}."
        )
    for name, array in update.tensors.items():
        if array.shape != sums[name].shape or array.dtype != dtypes[name]:
            raise UpdateRejected(
                f"site {update.site!r}: tensor {name!r} is {array.dtype} {array.shape}, other "
                f"sites sent {dtypes[name]} {sums[name].shape}."
            )


def _divided(total: Sum, weight: float, dtype: np.dtype[np.generic]) -> Tensor:
    result = empty(total.shape, dtype)
    mean = np.empty(min(_BLOCK, total.size), total.dtype)
    whole = not np.issubdtype(dtype, np.inexact)
    for target, source in _blocks(result, total):
        part = mean[: target.size]
        np.divide(source, weight, out=part)
        target[...] = np.rint(part, out=part) if whole else part
    return result


def _blocks(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields matching flat pieces of two arrays of the same shape; `target` is contiguous.

    A source that is not contiguous is copied once, as a whole.
    """
    flat_target, flat_source = target.reshape(-1), source.reshape(-1)
    for start in range(0, flat_target.size, _BLOCK):
        yield flat_target[start : start + _BLOCK], flat_source[start : start + _BLOCK]
