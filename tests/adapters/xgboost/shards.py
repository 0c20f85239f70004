"""XGBoost's own collective over shards of data, in threads: what is compared with."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xgboost
from numpy.typing import NDArray
from xgboost import collective
from xgboost.tracker import RabitTracker

Array = NDArray[np.float64]


def made(rows: int = 900, features: int = 6, seed: int = 0) -> tuple[Array, Array]:
    """Returns features with missing values, and a binary label."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, features))
    y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.3 * random.normal(size=rows) > 0).astype(np.float64)
    x[random.random(x.shape) < 0.05] = np.nan
    return x, y


def together(works: Sequence[Callable[[], object]]) -> list[object]:
    """Runs functions on a thread each; returns what they return, or raises what one raises."""
    results: list[object] = [None] * len(works)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = works[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def own_collective(
    parameters: Mapping[str, object],
    rounds: int,
    shards: Sequence[Callable[[], tuple[xgboost.DMatrix, list[tuple[xgboost.DMatrix, str]]]]],
) -> tuple[bytes, dict[str, dict[str, list[float]]]]:
    """Trains by XGBoost's own collective ("rabit"); returns the model and its evaluation.

    Args:
        parameters: XGBoost's parameters.
        rounds: Boosting rounds.
        shards: By rank: makes the data to train on and to evaluate on, in the communicator.
    """
    tracker = RabitTracker(host_ip="127.0.0.1", n_workers=len(shards), sortby="task")
    tracker.start()
    arguments = tracker.worker_args()

    def work(rank: int) -> tuple[bytes, dict[str, dict[str, list[float]]]]:
        with collective.CommunicatorContext(**arguments, dmlc_task_id=f"{rank:03d}"):
            assert collective.get_rank() == rank
            train, evaluated = shards[rank]()
            told: dict[str, dict[str, list[float]]] = {}
            booster = xgboost.train(
                dict(parameters), train, rounds,
                evals=evaluated, evals_result=told, verbose_eval=False,
            )  # fmt: skip
            return bytes(booster.save_raw("ubj")), told

    results = together([lambda rank=rank: work(rank) for rank in range(len(shards))])  # type: ignore[misc]
    models = {result[0] for result in results}  # type: ignore[index]
    assert len(models) == 1
    return results[0]  # type: ignore[return-value]
