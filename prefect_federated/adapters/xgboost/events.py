"""What a site's distributed training says to the controller: one event after another.

An event travels as a site task's answer: a JSON blob, and one tensor of bytes. Nothing here needs
XGBoost, so that the controller reads events without it.
"""

import json
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Update

Bytes: TypeAlias = NDArray[np.uint8]

RESULT = "result"
"""Name of the tensor in which the result of a collective call comes back."""
BOOSTER = "booster"
"""Name of the tensor that is a model: UBJSON bytes."""

_BLOB, _TENSOR = "event", "bytes"


@dataclass(frozen=True)
class CollectiveCall:
    """A collective call of XGBoost's, which waits for its result.

    Args:
        method: "Allgather", "AllgatherV", "Allreduce" or "Broadcast".
        sequence: Its number in this training; the same at all sites.
        buffer: What this site gives, `(n_bytes,)`.
        data_type: Of an allreduce: numpy's name of the type of the buffer's elements.
        reduction: Of an allreduce: "sum", "max", "min", "and", "or" or "xor".
        root: Of a broadcast: the rank whose buffer all get.
    """

    method: str
    sequence: int
    buffer: Bytes
    data_type: str = ""
    reduction: str = ""
    root: int = 0


@dataclass(frozen=True)
class RoundDone:
    """A boosting round has ended; the training waits for what the controller says.

    Args:
        round: Rounds that are in the model now.
        metrics: XGBoost's own evaluation, which is over all sites: "test-logloss" -> value.
        booster: The model so far as UBJSON, where the controller wants it from this site; else
            empty.
    """

    round: int
    metrics: dict[str, float] = field(default_factory=dict)
    booster: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(frozen=True)
class Ended:
    """The training has ended.

    Args:
        booster: The model as UBJSON, from the site of rank 0; empty from the others.
        metrics: Of the model, where the training itself has measured it: name -> value.
    """

    booster: Bytes
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The training has failed here, and would again: what XGBoost or the site's data said."""

    reason: str


@dataclass(frozen=True)
class Gone:
    """There is no such training at this site: its process is another than the one that began."""


Event: TypeAlias = CollectiveCall | RoundDone | Ended | Failed | Gone


def update_of(event: Event) -> Update:
    """Returns an event as a site task's answer."""
    metrics: dict[str, float] = {}
    payload: Bytes | None = None
    match event:
        case CollectiveCall():
            payload = event.buffer
            fields: list[object] = [
                event.method, event.sequence, event.data_type, event.reduction, event.root
            ]  # fmt: skip
        case RoundDone():
            payload, metrics, fields = event.booster, event.metrics, [event.round]
        case Ended():
            payload, metrics, fields = event.booster, event.metrics, []
        case Failed():
            fields = [event.reason]
        case Gone():
            fields = []
    tensors = {} if payload is None or not payload.size else {_TENSOR: payload}
    told = json.dumps([type(event).__name__, *fields]).encode()
    return Update(tensors, metrics=metrics, blobs={_BLOB: told})


def event_of(update: Update) -> Event:
    """Returns the event that an answer is.

    Raises:
        UpdateRejected: it is none.
    """
    payload = cast(Bytes, update.tensors.get(_TENSOR, np.zeros(0, np.uint8)))
    try:
        kind, *fields = json.loads(update.blobs[_BLOB])
        match kind, fields:
            case "CollectiveCall", [str(method), int(number), str(of), str(reduction), int(root)]:
                return CollectiveCall(method, number, payload, of, reduction, root)
            case "RoundDone", [int(round)]:
                return RoundDone(round, dict(update.metrics), payload)
            case "Ended", []:
                return Ended(payload, dict(update.metrics))
            case "Failed", [str(reason)]:
                return Failed(reason)
            case "Gone", []:
                return Gone()
    except (KeyError, ValueError, TypeError):
        pass
    raise UpdateRejected(
        f"site {update.site!r} answered with what is no event of a distributed training. Have it "
        "run the same version of prefect-federated as the server."
    )
