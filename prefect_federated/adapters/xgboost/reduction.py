"""What XGBoost's collective calls give: sums, maxima, concatenations, in XGBoost's own order.

A sum of floating-point numbers depends on its order. XGBoost's own collective ("rabit") sums on a
ring of sites, so that each part of a buffer is summed in another order. The same order is kept
here, which makes a model byte-identical to XGBoost's own over the same shards.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_federated.adapters.xgboost.events import Bytes, CollectiveCall
from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Tensor

_BITWISE = frozenset({"and", "or", "xor"})
_REDUCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def result_of(calls: Mapping[str, CollectiveCall]) -> Bytes:
    """Returns what every site gets back from one collective call, `(n_bytes,)`.

    Args:
        calls: Site -> its call, in the order of the sites' ranks.

    Raises:
        UpdateRejected: the sites are not at the same call, or a call is none that can be done.
    """
    check_alike(calls)
    buffers = [call.buffer for call in calls.values()]
    first = next(iter(calls.values()))
    match first.method:
        case "Allreduce":
            return _reduced(first, list(calls), buffers)
        case "Allgather" | "AllgatherV":
            return np.concatenate(buffers)
        case "Broadcast" if 0 <= first.root < len(buffers):
            return buffers[first.root]
    raise UpdateRejected(
        f"site {next(iter(calls))!r} made a collective call {first.method!r} (root {first.root}) "
        f"among {len(calls)} sites; there is no such call. Install the same version of xgboost at "
        "all sites, one that this version of prefect-federated takes."
    )


def check_alike(calls: Mapping[str, CollectiveCall]) -> None:
    """Raises `UpdateRejected` unless all sites are at the same call; names one that is not."""

    def told(call: CollectiveCall) -> tuple[object, ...]:
        return call.method, call.sequence, call.data_type, call.reduction, call.root

    (first, expected), *others = ((site, told(call)) for site, call in calls.items())
    for site, met in others:
        if met != expected:
            raise UpdateRejected(
                f"site {site!r} is at the collective call {met}, site {first!r} at {expected}. "
                "All sites must train with the same parameters and the same version of xgboost."
            )


def _reduced(call: CollectiveCall, sites: Sequence[str], buffers: Sequence[Bytes]) -> Bytes:
    try:
        dtype = np.dtype(call.data_type)
        reduce = _REDUCTIONS[call.reduction]
        if dtype.kind not in ("iu" if call.reduction in _BITWISE else "iuf"):
            raise TypeError(f"{call.data_type} has no {call.reduction}")
        arrays: list[NDArray[np.generic]] = [buffer.view(dtype) for buffer in buffers]
    except (KeyError, TypeError, ValueError) as error:
        raise UpdateRejected(
            f"sites {', '.join(sites)} asked for an allreduce {call.reduction!r} of "
            f"{call.data_type!r}, which is none: {error}. Install the same version of xgboost at "
            "all sites, one that this version of prefect-federated takes."
        ) from error
    for site, array in zip(sites, arrays, strict=True):
        if array.size != arrays[0].size:
            raise UpdateRejected(
                f"site {site!r} gives {array.size:,} numbers to an allreduce, site {sites[0]!r} "
                f"{arrays[0].size:,}. All sites must have the same features, categories and "
                "parameters."
            )
    is_ordered = call.reduction == "sum" and dtype.kind == "f"
    result = _on_a_ring(arrays, reduce) if is_ordered else _one_by_one(arrays, reduce)
    return result.view(np.uint8)


def _one_by_one(arrays: Sequence[Tensor], reduce: Callable[..., Tensor]) -> Tensor:
    total = arrays[0].copy()
    for array in arrays[1:]:
        reduce(total, array, out=total)
    return total


def _on_a_ring(arrays: Sequence[Tensor], reduce: Callable[..., Tensor]) -> Tensor:
    """Reduces as a ring of sites does: part k begins at rank k and takes up the next ranks.

    A buffer of fewer elements than sites is reduced in the order of ranks. The last part takes the
    elements that are left over.
    """
    world, size = len(arrays), arrays[0].size
    if size < world:
        return _one_by_one(arrays, reduce)
    total = np.empty_like(arrays[0])
    part = size // world
    for rank in range(world):
        span = slice(rank * part, size if rank == world - 1 else (rank + 1) * part)
        mine = total[span]
        mine[:] = arrays[rank][span]
        for step in range(1, world):
            reduce(mine, arrays[(rank + step) % world][span], out=mine)
    return total
