"""Boosting rounds of one site inside XGBoost's communicator; the controller decides after each.

The loop is the one of `xgboost.train`, so that the model is, byte for byte, what that gives; the
number of the round goes on counting when a training continues from a snapshot.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from prefect_federated.adapters.xgboost.collective import Training
from prefect_federated.adapters.xgboost.events import BOOSTER, Bytes, Ended, RoundDone
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Tensors

if TYPE_CHECKING:
    import xgboost


@dataclass(frozen=True)
class Plan:
    """What a site is to train.

    Args:
        parameters: XGBoost's parameters.
        rounds: Boosting rounds in all.
        done: Rounds that are in the model to continue from.
        snapshot_every: After so many rounds each, the site of rank 0 gives the model.
        booster: The model to continue from, as UBJSON; empty for none.
    """

    parameters: Mapping[str, JsonValue]
    rounds: int
    done: int
    snapshot_every: int
    booster: Bytes

    @classmethod
    def of(cls, model: Tensors, site: Site) -> "Plan":
        """Returns the plan that a site task "start" carries."""
        return cls(
            parameters=cast(dict[str, JsonValue], site.config["parameters"]),
            rounds=int(site.number("rounds", 0)),
            done=int(site.number("done", 0)),
            snapshot_every=int(site.number("snapshot_every", 1)),
            booster=cast(Bytes, model.get(BOOSTER, np.zeros(0, np.uint8))),
        )


@dataclass(frozen=True)
class Shard:
    """A site's part of the data, made inside the communicator.

    Args:
        train: What the trees are grown on.
        evaluated: What each round is evaluated on, with names.
        names: What the model's features are called at the end; as in `train` if empty.
    """

    train: "xgboost.DMatrix"
    evaluated: Sequence[tuple["xgboost.DMatrix", str]] = ()
    names: Sequence[str] = ()


def boost(
    training: Training,
    plan: Plan,
    make: Callable[[], Shard],
    measure: Callable[["xgboost.Booster", Shard], Mapping[str, float]] | None = None,
) -> Ended:
    """Trains and returns the model.

    Args:
        training: Whom the rounds are told.
        plan: What is to be trained.
        make: Makes the site's shard; making a `DMatrix` is a collective call, too.
        measure: Measures the model at the end, at all sites together.
    """
    import xgboost

    shard = make()
    cached = [shard.train, *(matrix for matrix, _ in shard.evaluated)]
    booster = xgboost.Booster(
        dict(plan.parameters), cached, bytearray(plan.booster.tobytes()) if plan.done else None
    )
    for round in range(plan.done, plan.rounds):
        booster.update(shard.train, round)
        metrics = _metrics(booster, shard, round)
        is_wanted = training.rank == 0 and (round + 1) % plan.snapshot_every == 0
        raw = booster.save_raw("ubj") if is_wanted and round + 1 < plan.rounds else b""
        event = RoundDone(round + 1, metrics, np.frombuffer(raw, np.uint8))
        decision = training.round_done(event)
        if decision.keep is not None:
            booster = booster[: decision.keep]
            break
    found = {} if measure is None else dict(measure(booster, shard))
    if shard.names:
        booster.feature_names = list(shard.names)
    return Ended(np.frombuffer(booster.reset().save_raw("ubj"), np.uint8), found)


def _metrics(booster: "xgboost.Booster", shard: Shard, round: int) -> dict[str, float]:
    if not shard.evaluated:
        return {}
    told = str(booster.eval_set(list(shard.evaluated), round)).split()[1:]  # [n] name-metric:value
    parted = (each.rpartition(":") for each in told)
    metrics = {name: float(value) for name, _, value in parted}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
