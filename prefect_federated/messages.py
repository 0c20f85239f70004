"""What travels between a controller and its sites, and what comes back.

A message is a small JSON header, named tensors and named blobs. How it looks in bytes is
`wire`'s business, and how it is carried is `transport`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Tensor: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Tensor]
"""Named arrays; the order of the names is kept on the wire."""


@dataclass(frozen=True, slots=True)
class Message:
    """A header (JSON values), tensors (name -> ndarray) and blobs (name -> bytes)."""

    header: Mapping[str, JsonValue]
    tensors: Tensors = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of tensors and blobs, the header not counted."""
        tensors = sum(array.nbytes for array in self.tensors.values())
        return tensors + sum(len(blob) for blob in self.blobs.values())


@dataclass(frozen=True, slots=True)
class Update:
    """What a site returns from a site task: tensors, their weight in the mean, and metrics.

    Args:
        tensors: Name -> ndarray; for training, the names, shapes and dtypes of the global model.
        weight: Weight in the mean, above 0; for FedAvg the number of training examples.
        metrics: Name -> finite number, such as `{"loss": 0.3, "accuracy": 0.9}`. Reports average
            them over the sites by weight, or by `metrics_weight` where that is given (say, the
            number of test examples).
        blobs: Name -> bytes, for what is not an array.
        metrics_weight: Weight of the metrics in the reports' averages; `weight` if None.
        site: The sending site's name; filled in by the server from the site's certificate.
        staleness: Rounds since the model that it was trained from; filled in by the server.
        buffers: Names of tensors that are statistics, such as a batch norm's running mean: the
            server averages them, and does not take them for something to optimize.
    """

    tensors: Tensors = field(default_factory=dict)
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    metrics_weight: float | None = None
    site: str = ""
    staleness: int = 0
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """A site that gave no update to a call: which site, and why, in one line."""

    site: str
    reason: str


Reply: TypeAlias = Update | SiteFailure


@dataclass(frozen=True, slots=True)
class Note:
    """What a site says while it works on a site task: numbers, or how far it has come.

    Args:
        time: Seconds since 1970, by the site's own clock.
        metrics: Name -> number, which need not be finite: a loss that has become NaN is news.
        step: Which step of the training the metrics belong to; None if it was not said.
        progress: How much is done, of how much in all, and of what ("epoch"); None in a note of
            metrics.
        kind: The site task.
        round: Its round, counted from 1; 0 outside rounds.
    """

    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    progress: tuple[float, float, str] | None = None
    kind: str = ""
    round: int = 0

    @property
    def points(self) -> int:
        """Numbers in it, by which notes are bounded; progress counts as one."""
        return max(1, len(self.metrics))


class Stream(Protocol):
    """Takes what a site says while it works; from any thread, and without ever waiting."""

    def tell(self, note: Note) -> None:
        """Takes a note, which goes to the server soon, or is dropped if there are too many."""
        ...


class NoStream:
    """A stream to nowhere, for a site outside a job."""

    def tell(self, note: Note) -> None:
        """Does nothing."""


def human_bytes(size: float) -> str:
    """Returns a size as a person reads it.

    >>> human_bytes(1234567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
