"""The server's step: from a global model and the sites' mean change to the next model."""

import numpy as np

from prefect_federated.errors import UpdateRejected
from prefect_federated.memory import empty
from prefect_federated.messages import Tensor, Tensors


def stepped(model: Tensors, change: Tensors, lr: float) -> dict[str, Tensor]:
    """Returns the model moved by `lr` times a change.

    Float tensors become `model + lr * change`, in their own dtype; other tensors of the change
    (counters, masks) take the model's place as they are; those that the change lacks stay.

    Raises:
        UpdateRejected: the change has a tensor that the model has not, or in another shape.
    """
    check_fits(model, change, "the change")
    result = dict(model)
    for name, moved in change.items():
        before = model[name]
        if not np.issubdtype(before.dtype, np.inexact):
            result[name] = moved
            continue
        after = empty(before.shape, before.dtype)
        np.multiply(moved, before.dtype.type(lr), out=after)
        np.add(before, after, out=after)
        result[name] = after
    return result


def check_fits(model: Tensors, tensors: Tensors, what: str) -> None:
    """Checks that tensors are the model's, by their names and shapes.

    Raises:
        UpdateRejected: one is not in the model, or has another shape there.
    """
    for name, array in tensors.items():
        if name not in model or model[name].shape != array.shape:
            there = f"{model[name].shape} there" if name in model else "not in the model"
            raise UpdateRejected(
                f"{what} has the tensor {name!r} of shape {array.shape}, which is {there}."
            )
