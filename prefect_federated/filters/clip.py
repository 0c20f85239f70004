"""A bound on how much one update can move the model."""

import math
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.filters.blocks import pieces
from prefect_federated.filters.passage import Passage
from prefect_federated.memory import empty
from prefect_federated.messages import Message, Tensor


class Clip(BaseModel):
    """Scales an update's change down so that its L2 norm is at most `max_norm`.

    The norm is over all float and complex tensors together, of the update minus the model that it
    was trained from; a tensor that the model does not have in the same shape and dtype counts in
    full, and is scaled too. All else passes untouched. What the norm was stands in the report. An
    update whose norm is not finite fails. An encoding after it may move the norm again, by its
    rounding and by what error feedback adds: where the bound must hold, clip at the server's
    entrance too, or encode without feedback.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", section 3.1, "Norm
    clipping", here of a whole update as in McMahan et al. 2018, "Learning Differentially Private
    Recurrent Language Models", section 2, "flat clipping".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "clip"

    max_norm: float = Field(
        gt=0, allow_inf_nan=False, description="Largest L2 norm that a change may have."
    )

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message with its change clipped.

        Raises:
            ValueError: the norm is not finite.
        """
        chosen = {
            name: (tensor, passage.reference_of(name, tensor))
            for name, tensor in message.tensors.items()
            if np.issubdtype(tensor.dtype, np.inexact)
        }
        norm = math.sqrt(sum(_squares(*pair) for pair in chosen.values()))
        if not math.isfinite(norm):
            raise ValueError("the update holds NaN or infinity, or its norm is beyond float64")
        passage.note(norm=norm)
        if norm <= self.max_norm:
            return message
        factor = self.max_norm / norm
        clipped = {name: _scaled(*pair, factor) for name, pair in chosen.items()}
        return Message(message.header, {**message.tensors, **clipped}, message.blobs)


def _squares(tensor: Tensor, reference: Tensor | None) -> float:
    total = 0.0
    dtype = np.complex128 if np.issubdtype(tensor.dtype, np.complexfloating) else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        for part, base in pieces(tensor, tensor if reference is None else reference):
            change = part.astype(dtype)
            if reference is not None:
                change -= base
            total += float(np.vdot(change, change).real)
    return total


def _scaled(tensor: Tensor, reference: Tensor | None, factor: float) -> Tensor:
    result = empty(tensor.shape, tensor.dtype)
    for target, part, base in pieces(result, tensor, tensor if reference is None else reference):
        if reference is None:
            np.multiply(part, factor, out=target, casting="same_kind")
        else:  # in the mean's form: float64 inside, so that the norm is not above `max_norm`
            target[...] = base + (np.subtract(part, base, dtype=_wide(part)) * factor)
    result.flags.writeable = False
    return result


def _wide(part: Tensor) -> type[np.complex128] | type[np.float64]:
    return np.complex128 if np.issubdtype(part.dtype, np.complexfloating) else np.float64
