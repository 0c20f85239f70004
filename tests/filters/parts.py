"""Messages and passages as the filters' tests need them, and filters that a job could name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefect_federated.filters import (
    Filter,
    Filters,
    Passage,
    Point,
    decode,
    message_filter,
)
from prefect_federated.messages import JsonValue, Message, Tensors


def leaving_site(
    reference: Tensors | None = None,
    round: int = 1,
    state: Path | None = None,
    kind: str = "train",
    site: str = "clinic-a",
) -> Passage:
    return Passage(Point.LEAVING_SITE, site, kind, round, state, reference)


def entering_server(reference: Tensors | None = None) -> Passage:
    return Passage(Point.ENTERING_SERVER, "clinic-a", reference=reference)


def there_and_back(
    spec: Mapping[str, object], message: Message, reference: Tensors | None = None
) -> tuple[Message, Message]:
    """Returns a message as it leaves a site through one filter, and as it enters the server."""
    filters = Filters.of([{"at": "leaving_site", **spec}])
    sent = filters.run(Point.LEAVING_SITE, message, leaving_site(reference))
    return sent, decode(sent, entering_server(reference))


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    array = np.random.default_rng(seed).standard_normal(shape).astype("f4")
    return np.asarray(array, np.float32)


def rows(message: Message) -> list[JsonValue]:
    found = message.header["filtered"]
    assert isinstance(found, list)
    return found


@message_filter
def doubled(message: Message, passage: Passage) -> Message:
    """Twice the tensors."""
    tensors = {name: tensor * 2 for name, tensor in message.tensors.items()}
    return Message(message.header, tensors, message.blobs)


@message_filter
class Times:
    """The tensors times a factor."""

    def __init__(self, factor: float) -> None:
        if factor == 0:
            raise ValueError("a factor of 0 leaves nothing")
        self.factor = factor

    def __call__(self, message: Message, passage: Passage) -> Message:
        tensors = {name: tensor * self.factor for name, tensor in message.tensors.items()}
        return Message(message.header, tensors, message.blobs)


@message_filter
def maker(exponent: int = 1) -> Filter:
    """Makes a filter."""
    return Times(2.0**exponent)


@message_filter
def makes_nothing() -> int:
    return 3


def unmarked(message: Message, passage: Passage) -> Message:
    return message
