"""An update as a message, at the site, and back again, at the server."""

import math
from collections.abc import Mapping
from typing import TypeGuard

import numpy as np

from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import JsonValue, Message, Tensor, Update
from prefect_federated.transport.calls import CallTerms
from prefect_federated.wire import DEFAULT_LIMITS, Incoming, TensorSpec, specs_of

_LARGEST_WEIGHT = 1e15
_METRICS = 1_000  # metrics of one update at most
_NAME_LENGTH = 200  # of a metric
_REASON_LENGTH = 500
_BLOBS_BESIDE_A_MODEL = 1 << 20
_FINITE_BLOCK = 1 << 18  # elements checked at once


def message_of(task: str, update: Update) -> Message:
    """Returns the message that carries a site's update for a site task.

    Raises:
        ProtocolError: a metric or the weight is not a finite number, a tensor is not an array, a
            blob is not bytes, or a buffer is none of the tensors.
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
    if update.buffers:
        header["buffers"] = [_buffer(name, update) for name in update.buffers]
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


def _buffer(name: str, update: Update) -> str:
    if name not in update.tensors:
        raise ProtocolError(
            f"the buffer {name!r:.80} is none of the update's tensors; name those of them that are "
            "statistics."
        )
    return name


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
        UpdateRejected: its weight, a metric or its buffers are not what they must be, or it has too
            many metrics.
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
    return Update(
        message.tensors,
        float(weight),
        numbers,
        message.blobs,
        share,
        site,
        buffers=_buffers(site, message),
    )


def _buffers(site: str, message: Message) -> tuple[str, ...]:
    """Returns the tensors that are statistics; a filter may have taken some of them out."""
    buffers = message.header.get("buffers", [])
    if (
        not isinstance(buffers, list)
        or len(buffers) > DEFAULT_LIMITS.tensors
        or not all(isinstance(name, str) and name.isprintable() for name in buffers)
    ):
        raise UpdateRejected(
            f"site {site!r} sent buffers that are not a list of at most "
            f"{DEFAULT_LIMITS.tensors:,} printable names of tensors."
        )
    return tuple(str(name) for name in dict.fromkeys(buffers) if name in message.tensors)


class LocalMessage(Incoming):
    """A message that needs no transfer: it is in this process already."""

    _whole: Message

    @classmethod
    def of(cls, message: Message) -> "LocalMessage":
        """Returns a message as one that has arrived; its tensors are read-only from now on."""
        sizes = {name: len(blob) for name, blob in message.blobs.items()}
        local = cls(dict(message.header), specs_of(message.tensors), sizes, b"")
        local.received = local.payload_bytes
        local._whole = message
        return local

    def allocate(self) -> None:
        """Does nothing: the memory is the sender's."""

    def restarted(self) -> "LocalMessage":
        """Returns itself: nothing has to be received."""
        return self

    def message(self) -> Message:
        """Returns the message."""
        tensors = {name: array.view() for name, array in self._whole.tensors.items()}
        for array in tensors.values():
            array.flags.writeable = False
        return Message(self._whole.header, tensors, self._whole.blobs)


def check_head(site: str, terms: CallTerms, announced: Mapping[str, TensorSpec]) -> None:
    """Compares an update's announced tensors with those expected, before any is received.

    Raises:
        UpdateRejected: names, shapes or dtypes differ.
    """
    expected = terms.expect or {}
    where = f"round {terms.round}, site {site!r}"
    odd = sorted(expected.keys() ^ announced.keys())
    if odd:
        side = "lacks" if odd[0] in expected else "has the unknown"
        raise UpdateRejected(
            f"{where}: the update {side} tensor {odd[0]!r} ({len(odd)} such). Send every tensor of "
            "the model, and no other."
        )
    for name, spec in expected.items():
        got = announced[name]
        if got != spec:
            raise UpdateRejected(
                f"{where}: tensor {name!r} is {got.dtype} {got.shape}, the global model has "
                f"{spec.dtype} {spec.shape}. Send every tensor in the model's own shape."
            )


def check_size(site: str, terms: CallTerms, incoming: Incoming) -> None:
    """Compares an update's announced bytes with what the call allows, before any is received.

    Raises:
        UpdateRejected: more than `max_reply_bytes`, or blobs beside the tensors of a known model.
    """
    blobs = sum(incoming.blob_sizes.values())
    most = terms.max_reply_bytes
    if terms.expect is not None and blobs > _BLOBS_BESIDE_A_MODEL:
        raise UpdateRejected(
            f"round {terms.round}, site {site!r}: the update has {blobs:,} bytes of blobs beside "
            f"the model's tensors; at most {_BLOBS_BESIDE_A_MODEL:,} are taken."
        )
    if most is not None and incoming.payload_bytes > most:
        raise UpdateRejected(
            f"round {terms.round}, site {site!r}: the answer has {incoming.payload_bytes:,} bytes; "
            f"at most {most:,} are taken for what was asked."
        )


def check_finite(round: int, update: Update) -> None:
    """Raises `UpdateRejected` if a tensor of the update holds a value that is not finite."""
    for name, array in update.tensors.items():
        if np.issubdtype(array.dtype, np.inexact) and not _is_finite(array):
            raise UpdateRejected(
                f"round {round}, site {update.site!r}: tensor {name!r} holds NaN or infinity. Look "
                "for a diverging loss there, or lower its learning rate."
            )


def _is_finite(array: Tensor) -> bool:
    flat = array.reshape(-1)
    return all(
        bool(np.isfinite(flat[start : start + _FINITE_BLOCK]).all())
        for start in range(0, flat.size, _FINITE_BLOCK)
    )


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
