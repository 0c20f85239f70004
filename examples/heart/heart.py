"""Heart disease at four hospitals: logistic regression in PyTorch on each one's patients.

Everything that looks at patients happens here, at the site: missing values, scaling and the test
split use the site's own rows alone, and no statistic of them leaves. A site's data folder holds
`heart.csv`, see prepare.py. What is asked: does this patient have heart disease (`num` above 0)?
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site

NUMBERS = ("age", "trestbps", "chol", "thalch", "oldpeak", "ca")
CHOICES = {  # fixed, so that every hospital has the same columns; a missing value is all zeros
    "sex": ("Male", "Female"),
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "fbs": ("FALSE", "TRUE"),
    "restecg": ("normal", "lv hypertrophy", "st-t abnormality"),
    "exang": ("FALSE", "TRUE"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}
NEVER_ZERO = ("trestbps", "chol")  # where a 0 was written for "not measured"
COLUMNS = (
    *NUMBERS,
    *(f"{name} missing" for name in NUMBERS),
    *(f"{name}={choice}" for name, choices in CHOICES.items() for choice in choices),
)
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Patients:
    """One hospital's patients as the model sees them.

    Args:
        x: `(n_patients, n_columns)`, float32, in the order of `COLUMNS`.
        y: `(n_patients,)`, int64: 1 for heart disease.
        is_test: `(n_patients,)`, bool: whether the patient is in the fixed test split.
        ids: `(n_patients,)`, int64.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    is_test: NDArray[np.bool_]
    ids: NDArray[np.int64]


def read_patients(csv_file: Path) -> Patients:
    """Returns a hospital's patients, imputed and scaled by its own training rows."""
    with csv_file.open(newline="") as source:
        rows = list(csv.DictReader(source))
    ids = np.array([int(row["id"]) for row in rows])
    y = np.array([int(int(row["num"]) > 0) for row in rows])
    is_test = test_split(ids, y)
    numbers = np.array([[_number(row, name) for name in NUMBERS] for row in rows])
    chosen = [
        [row[name] == choice for name, choices in CHOICES.items() for choice in choices]
        for row in rows
    ]
    scaled = _impute_and_scale(numbers, fit_on=~is_test)
    x = np.hstack([scaled, np.isnan(numbers), np.array(chosen)]).astype(np.float32)
    return Patients(x, y, is_test, ids)


def test_split(ids: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which patients are for testing: a quarter of the sick and a quarter of the others.

    A hash of the patient's number decides, so the split is the same in every run.
    """
    is_test = np.zeros(len(ids), dtype=bool)
    ranks = np.array([hashlib.sha256(str(number).encode()).hexdigest() for number in ids])
    for label in (0, 1):
        rows = np.flatnonzero(y == label)
        rows = rows[np.argsort(ranks[rows])]
        is_test[rows[: round(TEST_SHARE * len(rows))]] = True
    return is_test


def build(site: Site) -> nn.Module:
    """Returns the model: logistic regression, one score for "healthy" and one for "sick"."""
    return nn.Linear(len(COLUMNS), 2)


def read(site: Site) -> TrainTest:
    """Returns the site's training and test patients as tensors."""
    return as_tensors(read_patients(site.data / "heart.csv"))


def as_tensors(patients: Patients) -> TrainTest:
    """Returns the patients' training and test rows as tensors."""
    x, y = torch.from_numpy(patients.x), torch.from_numpy(patients.y)
    is_test = torch.from_numpy(patients.is_test)
    return TrainTest(train=(x[~is_test], y[~is_test]), test=(x[is_test], y[is_test]))


def _number(row: dict[str, str], name: str) -> float:
    missing = row[name] == "" or (name in NEVER_ZERO and float(row[name]) == 0)
    return np.nan if missing else float(row[name])


def _impute_and_scale(
    numbers: NDArray[np.float64], fit_on: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Fills gaps with the median, scales to mean 0, deviation 1; all 0 where nothing is known."""
    scaled = np.zeros_like(numbers)
    for column, values in enumerate(numbers.T):
        known = values[fit_on & ~np.isnan(values)]
        if not len(known):
            continue
        filled = np.where(np.isnan(values), np.median(known), values)
        scaled[:, column] = (filled - known.mean()) / (known.std() or 1.0)
    return np.clip(scaled, -4, 4)


heart = TorchExecutor(build, read, lr=0.1, epochs=1, batch_size=16)
# By these names a job finds them when it names the module alone: executor=heart
initialize, train, evaluate = heart.initialize, heart.train, heart.evaluate
scaffold, ditto = heart.scaffold, heart.ditto
