"""What a call may say beside its site task and model, checked and completed by the job's own."""

import math
from collections.abc import Mapping
from typing import TypedDict, TypeGuard

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.transport.calls import CallTerms
from prefect_federated.wire import TensorSpec


class Terms(TypedDict, total=False):
    """What a call may say beside its site task and model; for what it does not say, the job's.

    Args:
        round: The round, counted from 1; 0 (default) outside rounds.
        quorum: Updates needed: a count (int, 0 for none), or a share of the sites asked (float,
            above 0 and up to 1).
        timeout_s: Seconds after which sites that have not answered count as failed.
        grace_s: Seconds to wait for the other sites once the quorum is there; None for no end but
            `timeout_s`.
        late_weight: Factor on the weight of an update that comes after its call has ended, for each
            round of delay, in the next call of the same kind that takes late updates itself; 0
            drops it.
        in_flight: Sites that work at the same time at most; None for all.
        config: Settings for the executor, over the job's own.
        same_tensors: Whether updates must have the model's own names, shapes and dtypes; by
            default, they must when the site task is "train".
        reported: Whether the call makes a row of the job's table (default), or waits to be part of
            one that `fed.round_done` makes.
    """

    round: int
    quorum: int | float | None
    timeout_s: float | None
    grace_s: float | None
    late_weight: float
    in_flight: int | None
    config: Mapping[str, JsonValue]
    same_tensors: bool
    reported: bool


def call_terms(
    kind: str, said: Terms, job: JobParameters, expect: dict[str, TensorSpec] | None = None
) -> CallTerms:
    """Returns a call's terms: what it says itself, else what its job says.

    Args:
        kind: The site task, for messages.
        said: What the call says.
        job: The job's parameters.
        expect: Dtype and shape of each tensor that an update must have; None for any.

    Raises:
        ConfigurationError: the call says what cannot be.
    """
    check(kind, said)
    quorum, timeout_s = said.get("quorum"), said.get("timeout_s")
    return CallTerms(
        round=said.get("round", 0),
        quorum=job.quorum_terms if quorum is None else _count_or_share(quorum),
        timeout_s=job.round_timeout_s if timeout_s is None else timeout_s,
        lost_after_s=job.lost_after_s,
        expect=expect,
        grace_s=said.get("grace_s", job.grace_s),
        in_flight=said.get("in_flight", job.in_flight),
        late=said.get("late_weight", job.late_weight),
    )


def check(kind: str, said: Terms) -> None:
    """Raises `ConfigurationError` if a call says what cannot be."""
    unknown = sorted(said.keys() - Terms.__annotations__.keys())
    if unknown:
        raise ConfigurationError(
            f"{kind} was asked with {', '.join(unknown)}; what a call may say is "
            f"{', '.join(sorted(Terms.__annotations__))}."
        )
    quorum, in_flight = said.get("quorum"), said.get("in_flight")
    timeout_s, grace_s = said.get("timeout_s"), said.get("grace_s")
    late, round = said.get("late_weight", 0.0), said.get("round", 0)
    rules = [
        (
            "quorum", quorum, quorum is None or _is_quorum(quorum),
            "a share above 0 and up to 1.0, or a whole number of sites",
        ),
        (
            "timeout_s", timeout_s, timeout_s is None or (_is_number(timeout_s) and timeout_s > 0),
            "seconds above 0",
        ),
        (
            "grace_s", grace_s, grace_s is None or (_is_number(grace_s) and grace_s >= 0),
            "seconds, 0 or more",
        ),
        (
            "in_flight", in_flight, in_flight is None or (_is_whole(in_flight) and in_flight >= 1),
            "a whole number of sites, 1 or more",
        ),
        ("late_weight", late, _is_number(late) and 0 <= late <= 1, "a factor from 0 to 1"),
        ("round", round, _is_whole(round) and round >= 0, "a whole number, 0 outside rounds"),
    ]  # fmt: skip
    for name, given, is_right, expected in rules:
        if not is_right:
            raise ConfigurationError(f"{kind} was asked with {name}={given!r}; it is {expected}.")


def _is_quorum(quorum: object) -> bool:
    if _is_whole(quorum):
        return quorum >= 0
    return _is_number(quorum) and (0 < quorum <= 1 or (quorum > 1 and quorum == int(quorum)))


def _count_or_share(quorum: int | float) -> int | float:
    """Returns a quorum as the transport takes it; 3.0 is a count, as in the job's parameters."""
    return int(quorum) if quorum > 1 else quorum


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
