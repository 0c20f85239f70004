"""What federated training is compared with: each hospital alone, and all patients in one place.

Same model, same preparation at the hospital, same number of passes over the training rows as a
federated job of as many rounds. Not federated: it reads every hospital's folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import heart
import numpy as np
from prepare import SITES

from prefect_federated.adapters.torch import TrainTest
from prefect_federated.executors import Site
from prefect_federated.messages import Tensors


@dataclass(frozen=True)
class Accuracy:
    """Shares of right predictions of one model.

    Args:
        own: On the test patients of the model's own hospital; for pooled training, of all.
        everywhere: On the test patients of all hospitals together.
    """

    own: float
    everywhere: float


@dataclass(frozen=True)
class Baselines:
    """What each hospital reaches alone (site -> accuracy), and what pooled training reaches."""

    alone: Mapping[str, Accuracy]
    pooled: Accuracy


def baselines(folder: Path, rounds: int = 20, seed: int = 0) -> Baselines:
    """Returns the accuracies to compare a federated model with; the same in every run.

    Args:
        folder: Holds each hospital's folder, as `split_by_hospital` writes them.
        rounds: Rounds of the federated job; as many times `heart.epochs` passes over the rows.
        seed: Seed of the initial model and of the order of the rows.
    """
    hospitals = {site: heart.read_patients(folder / site / "heart.csv") for site in SITES.values()}
    everyone = heart.as_tensors(together(hospitals.values()))
    alone = {}
    for site, patients in hospitals.items():
        own = heart.as_tensors(patients)
        model = _train(own, rounds, seed)
        alone[site] = Accuracy(accuracy(model, own), accuracy(model, everyone))
    pooled = accuracy(_train(everyone, rounds, seed), everyone)
    return Baselines(alone, Accuracy(pooled, pooled))


def together(hospitals: Iterable[heart.Patients]) -> heart.Patients:
    """Returns the patients of several hospitals, each prepared at its own, as if of one."""
    parts = list(hospitals)
    return heart.Patients(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        is_test=np.concatenate([part.is_test for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
    )


def accuracy(model: Tensors, patients: TrainTest) -> float:
    """Returns the share of right predictions of a model on the test patients."""
    here = replace(heart.heart, data=lambda site: patients)
    return here.evaluate(model, _NOWHERE).metrics["accuracy"]


def _train(patients: TrainTest, rounds: int, seed: int) -> Tensors:
    here = replace(heart.heart, data=lambda site: patients)
    site = replace(_NOWHERE, seed=seed, config={"seed": seed})
    model = here.initialize({}, site).tensors
    for number in range(1, rounds + 1):
        model = here.train(model, replace(site, round=number)).tensors
    return model


_NOWHERE = Site("baseline", Path(), Path())
