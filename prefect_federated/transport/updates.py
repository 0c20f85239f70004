"""An update as a message, at the site, and back again, at the server."""

import math
from typing import TypeGuard

import numpy as np

from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import JsonValue, Message, Tensor, Update

_LARGEST_WEIGHT = 1e15
_METRICS = 1_000  # metrics of one update at most
_NAME_LENGTH = 200  # of a metric
_REASON_LENGTH = 500


def message_of(task: str, update: Update) -> Message:
    """Returns the message that carries a site's update for a site task.

    Raises:
        ProtocolError: a metric or the weight is not a finite number, a tensor is not an array, or
            a blob is not bytes.
    """
    header: dict[str, JsonValue] = {
        "id": task,
        "weight": _finite("the weight", update.weight),
        "metrics": {
            name: _finite(f"the metric {name!r}", value) for name, value in update.metrics.items()
        },
    }
    if update.metrics_weight is not None:
        header["metrics_weight"] = _finite("the metrics' weight", update.metrics_weight)
    for name, blob in update.blobs.items():
        if not isinstance(blob, bytes):
            raise ProtocolError(f"the blob {name!r} is a {type(blob).__name__}; give bytes.")
    tensors = {name: _array(name, array) for name, array in update.tensors.items()}
    return Message(header, tensors, update.blobs)


def _finite(what: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # a framework's scalar is welcome
    except (TypeError, ValueError):
        raise ProtocolError(
            f"{what} is a {type(value).__name__}; it must be a finite number."
        ) from None
    if not math.isfinite(number):
        raise ProtocolError(f"{what} is {number}; it must be a finite number.")
    return number


def _array(name: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):  # what arithmetic makes of an array without dimensions
        return np.asarray(value)
    raise ProtocolError(
        f"tensor {name!r} is a {type(value).__name__}; give a NumPy array (a PyTorch tensor has "
        "`.numpy(force=True)`)."
    )


def failure_of(task: str, error: BaseException) -> Message:
    """Returns the message that a site task failed: the error's type and its first line."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    reason = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    return Message({"id": task, "error": printable(reason)})


def printable(text: str, length: int = _REASON_LENGTH) -> str:
    """Returns what a site says as one line of at most `length` characters, safe in logs and the UI.

    >>> printable("two\\nlines")
    'two lines'
    """
    return "".join(c if c.isprintable() else " " for c in text[:length])


def update_of(site: str, message: Message) -> Update:
    """Returns a site's message as an update.

    Raises:
        UpdateRejected: its weight or a metric is not what it must be, or it has too many metrics.
    """
    weight = message.header.get("weight", 1.0)
    metrics_weight = message.header.get("metrics_weight")
    metrics = message.header.get("metrics") or {}
    if not (_is_number(weight) and 0 < weight <= _LARGEST_WEIGHT):
        raise UpdateRejected(
            f"site {site!r} sent the weight {weight!r:.80}; it must be above 0 and at most "
            f"{_LARGEST_WEIGHT:g}."
        )
    if metrics_weight is not None and not (
        _is_number(metrics_weight) and 0 <= metrics_weight <= _LARGEST_WEIGHT
    ):
        raise UpdateRejected(
            f"site {site!r} sent the metrics weight {metrics_weight!r:.80}; it must be at least 0 "
            f"and at most {_LARGEST_WEIGHT:g}."
        )
    if not isinstance(metrics, dict) or len(metrics) > _METRICS:
        raise UpdateRejected(
            f"site {site!r} sent metrics that are not an object of at most {_METRICS:,} numbers."
        )
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if not _is_number(value) or printable(name, _NAME_LENGTH) != name:
            raise UpdateRejected(
                f"site {site!r} sent the metric {name!r:.80} as {value!r:.80}; a metric is a "
                f"finite number with a printable name of at most {_NAME_LENGTH} characters."
            )
        numbers[name] = float(value)
    share = float(metrics_weight) if _is_number(metrics_weight) else None
    return Update(message.tensors, float(weight), numbers, message.blobs, share, site)


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
