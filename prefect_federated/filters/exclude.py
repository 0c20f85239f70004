"""Tensors that do not travel, by their names."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.filters.passage import Passage
from prefect_federated.messages import JsonValue, Message

Value = TypeVar("Value")


class ByName(BaseModel):
    """Names tensors by patterns, such as `head.*`.

    In a pattern `*` stands for any characters, `?` for one, `[ab]` for one of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...] = Field(min_length=1, description="Patterns of names to take out.")
    keep: tuple[str, ...] = Field(
        default=(), description="Patterns of names that stay all the same, such as `*.lora_*`."
    )

    def remaining(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what is left of anything that has tensors' names as its keys.

        >>> Exclude(names=("head.*",)).remaining({"head.bias": 1, "body.bias": 2})
        {'body.bias': 2}
        """
        return {name: value for name, value in named.items() if not self.takes(name)}

    def takes(self, name: str) -> bool:
        """Returns whether this name is taken out."""
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.names)

    def without(self, message: Message) -> Message:
        """Returns the message without these tensors, which its header does not name any more."""
        left, header = self.remaining(message.tensors), dict(message.header)
        buffers = header.pop("buffers", None)
        if isinstance(buffers, list):
            still: list[JsonValue] = [name for name in buffers if name in left]
            header |= {"buffers": still} if still else {}
        return Message(header, left, message.blobs)


class Exclude(ByName):
    """Takes tensors out of a message by their names' patterns, such as `head.*`.

    Whoever receives the message keeps its own tensors of these names.
    """

    name: ClassVar[str] = "exclude"

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message without these tensors."""
        return self.without(message)
