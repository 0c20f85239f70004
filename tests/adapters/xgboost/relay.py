"""A controller in a few lines: carries the collective calls of trainings in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path

from prefect_federated.adapters.xgboost import collective
from prefect_federated.adapters.xgboost.collective import Training
from prefect_federated.adapters.xgboost.events import (
    RESULT,
    CollectiveCall,
    Ended,
    Event,
    Failed,
    RoundDone,
    event_of,
)
from prefect_federated.adapters.xgboost.reduction import result_of
from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue, Tensors
from tests.adapters.xgboost.shards import together


def sites_of(folder: Path, number: int, **config: JsonValue) -> list[Site]:
    """Returns sites whose rank is their place."""
    names = [f"site-{place + 1}" for place in range(number)]
    about: dict[str, JsonValue] = {"attempt": 1, "ranks": list(names), **config}
    return [Site(name, folder / name, folder / name, about) for name in names]


def relayed(
    sites: Sequence[Site],
    work: Callable[[Training], Ended],
    on_round: Callable[[RoundDone], dict[str, JsonValue]] = lambda event: {},
) -> tuple[Event, list[RoundDone], int]:
    """Trains at all sites; returns the end of rank 0, its rounds, and how many calls there were.

    Args:
        sites: The sites, by rank.
        work: What each training runs.
        on_round: What is said after a round, as config of "go_on".
    """
    rounds: list[RoundDone] = []
    calls = 0
    updates = together([lambda site=site: collective.start(site, lambda: work) for site in sites])  # type: ignore[misc]
    while True:
        events = [event_of(update) for update in updates]  # type: ignore[arg-type]
        first, config = events[0], {}
        tensors: Tensors = {}
        for event in events:
            if isinstance(event, Failed):
                for site in sites:
                    collective.stop(site)
                return event, rounds, calls
        if isinstance(first, Ended):
            assert all(isinstance(event, Ended) for event in events)
            return first, rounds, calls
        if isinstance(first, RoundDone):
            rounds.append(first)
            config = on_round(first)
        else:
            calls += 1
            told = {s.name: e for s, e in zip(sites, events, strict=True)}
            assert all(isinstance(event, CollectiveCall) for event in events)
            tensors = {RESULT: result_of(told)}  # type: ignore[arg-type]
        asked = [Site(s.name, s.data, s.state, {**s.config, **config}) for s in sites]
        updates = together([lambda s=s, t=tensors: collective.go_on(t, s) for s in asked])  # type: ignore[misc]
