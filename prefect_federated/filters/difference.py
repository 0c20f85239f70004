"""What changed instead of what came out."""

from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from prefect_federated.filters.blocks import is_float, pieces
from prefect_federated.filters.passage import Passage
from prefect_federated.memory import empty
from prefect_federated.messages import Message, Tensor


class Difference(BaseModel):
    """Makes each float tensor of an update its difference from the model it was trained from.

    It is not undone at the other end: an asynchronous flow adds differences to a model that has
    moved on meanwhile. Tensors of other dtypes (counters, masks) pass as they are. A float tensor
    that the model does not have in the same shape and dtype fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "difference"

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message with differences.

        Raises:
            ValueError: there is no tensor to subtract.
        """
        tensors = {
            name: _difference(name, tensor, passage) if is_float(tensor) else tensor
            for name, tensor in message.tensors.items()
        }
        return Message(message.header, tensors, message.blobs)


def _difference(name: str, tensor: Tensor, passage: Passage) -> Tensor:
    reference = passage.reference_of(name, tensor)
    if reference is None:
        raise ValueError(
            f"the model has no tensor {name!r} of {tensor.dtype} {tensor.shape} to subtract"
        )
    result = empty(tensor.shape, tensor.dtype)
    for target, part, base in pieces(result, tensor, reference):
        np.subtract(part, base, out=target)
    result.flags.writeable = False
    return result
