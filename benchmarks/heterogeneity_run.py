"""One run of `benchmarks.heterogeneity`: images divided between sites, and a simulated job."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.heterogeneity_record import Result, Run, Settings
from benchmarks.images import Examples, ImageSet
from benchmarks.small_cnn import write_site
from prefect_federated.errors import FederatedError
from prefect_federated.messages import JsonValue
from prefect_federated.partitioners import dirichlet

EXECUTOR = "benchmarks.small_cnn:small_cnn"
ALGORITHMS: Mapping[str, tuple[str, Mapping[str, JsonValue]]] = {
    "fedavg": ("fedavg", {}),
    "fedprox": ("fedavg", {"mu": 0.1}),
    "fedopt": ("fedopt", {"server_optimizer": "sgd", "server_lr": 1.0, "momentum": 0.6}),
    # The paper weighs all sites alike. These differ in size by a factor of 10 and more, and what is
    # measured is the accuracy on all images: they weigh what they do in FedAvg.
    "scaffold": ("scaffold", {"weighting": "examples"}),
}
"""Algorithm -> the flow and its parameters; the same for all data."""


def train(run: Run, images: ImageSet, settings: Settings, folder: Path) -> Result:
    """Returns what one job gave; it leaves nothing in `folder`."""
    from prefect_federated import simulate  # imports Prefect, which reads its settings then

    began = time.time()
    place = folder / f"{run.algorithm}-{run.alpha:g}-{run.seed}"
    try:
        sizes = _divide(images, settings.sites, run, place / "data")
        flow, own = ALGORITHMS[run.algorithm]
        result = simulate(
            flow,
            sites=settings.sites,
            data=place / "data",
            output=place / "output",
            parameters={
                "executor": EXECUTOR,
                "rounds": settings.rounds,
                "seed": run.seed,
                "config": {
                    "epochs": settings.epochs,
                    "steps_per_epoch": settings.steps_per_epoch,
                    "lr": settings.lr,
                    "seed": run.seed,  # of the untrained network
                    "threads": 1,  # the sites are what runs at the same time
                },
                **own,
            },
        )
        accuracy = _accuracy_by_round(result.metrics)
    except (FederatedError, ValueError) as error:
        return Result(seconds=time.time() - began, error=f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Result(
        accuracy=accuracy,
        site_images=sizes,
        seconds=round(time.time() - began, 2),
        failures=sum(_unanswered(row) for row in result.metrics),
    )


def _divide(images: ImageSet, sites: int, run: Run, folder: Path) -> list[int]:
    """Writes the sites' folders; returns how many training images each has."""
    train, test = images.train, images.test
    at_least = min(10, max(1, len(train.classes) // (20 * sites)))
    parts = dirichlet(train.classes, sites, alpha=run.alpha, seed=run.seed, at_least=at_least)
    order = np.random.default_rng(0).permutation(len(test.classes))
    for number, rows in enumerate(parts):
        held_out = order[number::sites]
        write_site(
            folder / f"site-{number + 1}",
            Examples(train.images[rows], train.classes[rows]),
            Examples(test.images[held_out], test.classes[held_out]),
            len(images.labels),
        )
    return [len(rows) for rows in parts]


def _accuracy_by_round(rows: Sequence[Mapping[str, JsonValue]]) -> list[float]:
    """A round's sites measure the model that they receive, which is that of the round before."""
    received = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
    if "accuracy" not in rows[-1]:
        raise ValueError(f"no site has measured the last model: {rows[-1]['failures']}")
    return [float(str(value)) for value in (*received[1:], rows[-1]["accuracy"])]


def _unanswered(row: Mapping[str, JsonValue]) -> int:
    answered, asked = str(row["sites"]).split("/")
    return int(asked) - int(answered)
