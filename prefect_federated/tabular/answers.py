"""The numbers that a site has answered with, checked before the server computes with them."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Tensor


def numbers_in(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    site: str,
    *,
    not_negative: Collection[str] = (),
    of: str = "its",
) -> dict[str, NDArray[np.float64]]:
    """Returns a site's tensors of these names as float64.

    Args:
        tensors: What the site has sent.
        shapes: Name -> shape that it must have.
        site: Who has sent it.
        not_negative: Names of those that hold no number below 0, such as counts.
        of: What they are of, for the error.

    Raises:
        UpdateRejected: one is not there, has another shape, or holds what is not a finite number.

    >>> numbers_in({"rows": np.array([3])}, {"rows": (1,)}, "site-1")
    {'rows': array([3.])}
    """
    found = {}
    for name, shape in shapes.items():
        has = _wrong(tensors.get(name), shape, name in not_negative)
        if has is not None:
            raise UpdateRejected(
                f"site {site!r}: {of} {name!r} has {has}; expected is shape {shape} of finite "
                f"numbers{' from 0' if name in not_negative else ''}. Run the same version of "
                "prefect-federated at all sites, and look for huge values in its columns."
            )
        found[name] = np.asarray(tensors[name], np.float64)
    return found


def _wrong(array: Tensor | None, shape: tuple[int, ...], from_0: bool) -> str | None:
    if array is None:
        return "none"
    if array.shape != shape:
        return f"shape {array.shape}"
    if array.dtype.kind not in "biuf":
        return f"dtype {array.dtype}"
    if not np.isfinite(array).all():
        return "what is not finite"
    return "a number below 0" if from_0 and (array < 0).any() else None
