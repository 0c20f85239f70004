"""What all encodings have in common where a message is encoded."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal, Protocol

from prefect_federated.filters.blocks import is_float
from prefect_federated.filters.claims import encodings_of
from prefect_federated.filters.feedback import Feedback, Memory
from prefect_federated.filters.passage import Passage, Point
from prefect_federated.messages import JsonValue, Message, Tensor, Tensors
from prefect_federated.wire import specs_of


class Encoding(Protocol):
    """What `encode` needs to know of an encoding."""

    name: ClassVar[str]

    @property
    def on(self) -> Literal["change", "tensors"]:
        """What is encoded: the change against the model where there is one, or the tensors."""
        ...

    @property
    def memory(self) -> Memory | None:
        """Where residuals are kept without a state folder; None: no error feedback."""
        ...

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """What the decoder must know, for all tensors."""
        ...

    def takes(self, tensor: Tensor, is_change: bool) -> bool:
        """Returns whether a tensor of a float dtype is encoded at all."""
        ...

    def encoded(
        self, name: str, tensor: Tensor, reference: Tensor | None, feedback: Feedback | None
    ) -> Tensors | None:
        """Returns the tensors that travel in a tensor's place; None: it travels as it is.

        Raises:
            ValueError: the tensor's values cannot be encoded.
        """
        ...


def encode(encoding: Encoding, message: Message, passage: Passage) -> Message:
    """Returns a message whose float tensors are encoded, and whose header says how.

    What an earlier encoding made is encoded as it is: without a reference and without feedback,
    because its elements mean something else each time.
    """
    earlier = encodings_of(message.header)
    references: dict[str, Tensor | None] = {}
    for name, tensor in message.tensors.items():
        if not is_float(tensor) or tensor.size == 0:
            continue
        by_change = encoding.on == "change" and not earlier
        reference = passage.reference_of(name, tensor) if by_change else None
        if encoding.takes(tensor, reference is not None or passage.is_difference):
            references[name] = reference
    if not references:
        return message
    specs = specs_of({name: message.tensors[name] for name in references})
    tensors: dict[str, Tensor] = {}
    claims: dict[str, JsonValue] = {}
    sizes = {name: message.tensors[name].size for name in references}
    with _feedback(encoding, passage, {} if earlier else sizes) as feedback:
        for name, tensor in message.tensors.items():
            parts = None
            if name in references:
                parts = encoding.encoded(name, tensor, references[name], feedback)
            if parts is None:
                tensors[name] = tensor
                continue
            for part in parts:
                if part != name and part in message.tensors:
                    raise ValueError(f"the tensor name {part!r} is needed for the encoding")
            tensors.update(parts)
            is_change = references[name] is not None
            claims[name] = [specs[name].dtype, list(tensor.shape), is_change]
    if not claims:
        return message
    entry: JsonValue = {
        "encoding": encoding.name,
        "options": dict(encoding.options),
        "tensors": claims,
    }
    header = {**message.header, "encodings": [*earlier, entry]}
    return Message(header, tensors, message.blobs)


def _feedback(
    encoding: Encoding, passage: Passage, sizes: Mapping[str, int]
) -> AbstractContextManager[Feedback | None]:
    if encoding.memory is None or passage.point is not Point.LEAVING_SITE or not sizes:
        return nullcontext()
    return Feedback(encoding.name, passage, encoding.memory, sizes)
