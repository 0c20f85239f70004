"""What a filter is, the four points where filters stand, and what a filter is told there."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from prefect_federated.messages import JsonValue, Message, Tensor, Tensors

Target = TypeVar("Target", bound=Callable[..., object])

_MARK = "__federated_filter__"
_ROWS = 64  # of one message's report at most
_NOTES = 8  # of one row at most
_NAME_LENGTH = 200


class Point(StrEnum):
    """Where a filter stands on a message's way."""

    LEAVING_SERVER = "leaving_server"
    ENTERING_SITE = "entering_site"
    LEAVING_SITE = "leaving_site"
    ENTERING_SERVER = "entering_server"


@dataclass(frozen=True)
class Passage:
    """What a filter knows of the message that passes.

    Args:
        point: Where the filter stands.
        site: The site that the message goes to or comes from; None where it goes to many.
        kind: The kind of site task, such as "train".
        round: The round, counted from 1; 0 outside rounds.
        state: A folder of this job at this site, kept across restarts; None where there is none.
        reference: The model of the site task as the site received it (decoded, and before the
            filters that stand at the site's entrance); None on the way to the sites.
        is_difference: Whether float tensors are already changes of the model; filled in by
            `Filters.run` from the job's own list, never from what a message says.
        notes: What the filter found, for the round's report: write with `note`.
    """

    point: Point
    site: str | None = None
    kind: str = "train"
    round: int = 0
    state: Path | None = None
    reference: Tensors | None = None
    is_difference: bool = False
    notes: dict[str, float] = field(default_factory=dict, compare=False)

    def note(self, **values: float) -> None:
        """Adds named numbers to the filter's row in the round's report."""
        self.notes.update(values)

    def reference_of(self, name: str, tensor: Tensor) -> Tensor | None:
        """Returns the model's tensor that `tensor` is a trained form of, if there is one."""
        if self.is_difference or self.reference is None:
            return None
        found = self.reference.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            return None
        return found


Filter: TypeAlias = Callable[[Message, Passage], Message]


def message_filter(target: Target) -> Target:
    """Marks a filter, or what makes one, so that a job may name it by its import path.

    Mark a function `(message, passage) -> message`, or a class or function that takes the fields
    of the job's entry as keyword arguments and returns such a callable.

    >>> @message_filter
    ... def without_blobs(message: Message, passage: Passage) -> Message:
    ...     return Message(message.header, message.tensors)
    """
    setattr(target, _MARK, True)
    return target


def is_marked(target: object) -> bool:
    """Returns whether a job may name this object as a filter."""
    return getattr(target, _MARK, None) is True  # a mock has any attribute, but not True


def is_filter(target: Callable[..., object]) -> bool:
    """Returns whether this is a filter itself, not something that makes one."""
    if inspect.isclass(target):
        return False
    try:
        inspect.signature(target).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


class FilterRow(NamedTuple):
    """What one filter did to one message: where, which, bytes before and after, and its notes."""

    point: str
    name: str
    bytes_before: int
    bytes_after: int
    notes: dict[str, float]


def rows_of(header: Mapping[str, JsonValue]) -> list[FilterRow]:
    """Returns what a message's header says of the filters that it passed.

    The header may be a peer's: what is not a row is left out, and of too many rows the first 64 are
    taken.
    """
    rows = header.get("filtered")
    if not isinstance(rows, list):
        return []
    return [row for row in map(_row_of, rows[:_ROWS]) if row is not None]


def _row_of(value: JsonValue) -> FilterRow | None:
    match value:
        case [str(point), str(name), int(before), int(after), dict(notes)]:
            if isinstance(before, bool) or isinstance(after, bool) or min(before, after) < 0:
                return None
            numbers = {
                key[:_NAME_LENGTH]: float(number)
                for key, number in list(notes.items())[:_NOTES]
                if isinstance(number, int | float)
                and not isinstance(number, bool)
                and abs(number) < 1e300
            }
            return FilterRow(point[:_NAME_LENGTH], name[:_NAME_LENGTH], before, after, numbers)
        case _:
            return None
