"""An update as a message, at the site, and back again, at the server."""

import math
from typing import TypeGuard

from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import JsonValue, Message, Update


def message_of(task: str, update: Update) -> Message:
    """Returns the message that carries a site's update for a site task.

    Raises:
        ProtocolError: a metric or the weight is not a finite number.
    """
    numbers = {"weight": float(update.weight), **update.metrics}
    if update.metrics_weight is not None:
        numbers["metrics_weight"] = update.metrics_weight
    for name, value in numbers.items():
        if not math.isfinite(float(value)):
            raise ProtocolError(f"{name!r} is {float(value)}; it must be a finite number.")
    header: dict[str, JsonValue] = {
        "id": task,
        "weight": float(update.weight),
        "metrics": {name: float(value) for name, value in update.metrics.items()},
    }
    if update.metrics_weight is not None:
        header["metrics_weight"] = float(update.metrics_weight)
    return Message(header, update.tensors, update.blobs)


def failure_of(task: str, error: BaseException) -> Message:
    """Returns the message that a site task failed: the error's type and its first line."""
    first_line = next(iter(str(error).splitlines()), "")
    reason = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    return Message({"id": task, "error": reason[:500]})


def update_of(site: str, message: Message) -> Update:
    """Returns a site's message as an update.

    Raises:
        UpdateRejected: its weight or a metric is not what it must be.
    """
    weight = message.header.get("weight", 1.0)
    metrics_weight = message.header.get("metrics_weight")
    metrics = message.header.get("metrics") or {}
    if not _is_number(weight) or not weight > 0:
        raise UpdateRejected(f"site {site!r} sent the weight {weight!r}; it must be above 0.")
    if metrics_weight is not None and not (_is_number(metrics_weight) and metrics_weight >= 0):
        raise UpdateRejected(
            f"site {site!r} sent the metrics weight {metrics_weight!r}; it must not be below 0."
        )
    if not isinstance(metrics, dict):
        raise UpdateRejected(f"site {site!r} sent metrics that are not an object.")
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if not _is_number(value):
            raise UpdateRejected(f"site {site!r} sent the metric {name!r} as {value!r:.80}.")
        numbers[name] = float(value)
    share = float(metrics_weight) if _is_number(metrics_weight) else None
    return Update(message.tensors, float(weight), numbers, message.blobs, share, site)


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
