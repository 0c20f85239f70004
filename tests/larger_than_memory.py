"""Averages two updates of 480 MB, writes the mean as a model's file and reads it again."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prefect_federated.aggregators import weighted_mean
from prefect_federated.memory import empty
from prefect_federated.messages import Update
from prefect_federated.model_file import map_model, write_model

_ELEMENTS = 60_000_000  # of two tensors


def _updates() -> Iterator[Update]:
    for value in (1.0, 3.0):
        tensors = {name: empty((_ELEMENTS,), np.float32) for name in ("v", "w")}
        for array in tensors.values():
            array.fill(value)
        yield Update(tensors)


def main(file: Path) -> None:
    """Prints the bytes of the model that was read, and the mean of its values."""
    write_model(file, weighted_mean(_updates()))
    model = map_model(file)
    means = [float(array[:: 1 << 10].mean()) for array in model.values()]
    print(sum(array.nbytes for array in model.values()), sum(means) / len(means))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
