"""What aggregators share: updates of one form, and results in each tensor's own dtype."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Reply, SiteFailure, Tensor, Update

Forms: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
"""Name -> shape and dtype."""


def forms_of(update: Update) -> Forms:
    """Returns the shapes and dtypes of an update's tensors."""
    return {name: (array.shape, array.dtype) for name, array in update.tensors.items()}


def check_alike(update: Update, forms: Forms) -> None:
    """Checks that an update's tensors have the names, shapes and dtypes of the other sites'.

    Raises:
        UpdateRejected: they have not; the message names the site.
    """
    if update.tensors.keys() != forms.keys():
        odd = sorted(update.tensors.keys() ^ forms.keys())
        raise UpdateRejected(
            f"site {update.site!r} disagrees with the other sites on the tensors {odd[:5]}."
        )
    for name, array in update.tensors.items():
        shape, dtype = forms[name]
        if array.shape != shape or array.dtype != dtype:
            raise UpdateRejected(
                f"site {update.site!r}: tensor {name!r} is {array.dtype} {array.shape}, other "
                f"sites sent {dtype} {shape}."
            )


def all_updates(replies: Iterable[Reply]) -> tuple[list[Update], Forms]:
    """Returns all updates, which are alike, by their sites' names; and their tensors' form.

    Raises:
        UpdateRejected: two sites disagree on names, shapes or dtypes; or there is no update.
    """
    updates: list[Update] = []
    forms: Forms = {}
    for reply in replies:
        if isinstance(reply, SiteFailure):
            continue
        if updates:
            check_alike(reply, forms)
        else:
            forms = forms_of(reply)
        updates.append(reply)
    if not updates:
        raise UpdateRejected("no site sent an update; there is nothing to aggregate.")
    return sorted(updates, key=lambda update: update.site), forms


def reals(array: Tensor) -> Tensor:
    """Returns an array's numbers in one row; of complex ones, the real and imaginary parts.

    A view of a contiguous array; of another, a copy.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(flat.real.dtype) if np.iscomplexobj(flat) else flat


def write(target: Tensor, values: Tensor) -> None:
    """Writes float64 values into a row of any real dtype; whole numbers are rounded first."""
    if not np.issubdtype(target.dtype, np.integer):
        target[...] = np.rint(values) if target.dtype == np.bool_ else values
        return
    limits = np.iinfo(target.dtype)
    largest = float(limits.max)
    if largest > limits.max:  # float64 has no 2**63 - 1: the next is beyond what int64 can hold
        largest = float(np.nextafter(largest, 0))
    target[...] = np.clip(np.rint(values), float(limits.min), largest)
