"""Tensors that do not travel."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.filters.passage import Passage
from prefect_federated.messages import Message

Value = TypeVar("Value")


class Exclude(BaseModel):
    """Takes tensors out of a message by their names' patterns, such as `head.*`.

    In a pattern `*` stands for any characters, `?` for one, `[ab]` for one of these. Whoever
    receives the message keeps its own tensors of these names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "exclude"

    names: tuple[str, ...] = Field(min_length=1, description="Patterns of names to take out.")
    keep: tuple[str, ...] = Field(
        default=(), description="Patterns of names that stay all the same, such as `*.lora_*`."
    )

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns the message without these tensors."""
        return Message(message.header, self.remaining(message.tensors), message.blobs)

    def remaining(self, named: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what is left of anything that has tensors' names as its keys.

        >>> Exclude(names=("head.*",)).remaining({"head.bias": 1, "body.bias": 2})
        {'body.bias': 2}
        """
        return {name: value for name, value in named.items() if not self._excludes(name)}

    def _excludes(self, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.names)
