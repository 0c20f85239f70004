"""What part of a site's busy time its training loop takes; `benchmarks.digits` starts it.

A site trains a small network on so many random images that an epoch takes a given time. Its busy
time is, for each round, that from the controller's call to the site's reply: the model on its way,
read, measured on test images, trained, and on its way back. `plain_epoch_s` is an epoch of the same
network in a loop that knows nothing of federations.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.timed_training import BATCH, loop_s, network, random_images
from prefect_federated import simulate

_ROUNDS = 5
_TRIAL = 40 * BATCH
_PLAIN = 3


def plain_epoch_s(images: int) -> float:
    """Returns how long an epoch takes in a plain loop."""
    x, y = random_images(images)
    torch.manual_seed(0)
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    began = time.perf_counter()
    for rows in torch.split(torch.randperm(images), BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - began


def main(file: Path, epoch_s: float) -> None:
    """Runs the job and writes what it saw."""
    torch.set_num_threads(1)
    plain_epoch_s(_TRIAL)  # the first one loads what torch needs
    images = max(round(epoch_s / plain_epoch_s(_TRIAL) * _TRIAL), BATCH)
    plain_s = statistics.median(plain_epoch_s(images) for _ in range(_PLAIN))
    loop_s.clear()
    result = simulate(
        "fedavg",
        sites=1,
        threads=1,
        parameters={
            "executor": "benchmarks.timed_training:sites",
            "rounds": _ROUNDS,
            "config": {"images": images, "threads": 1},
        },
    )
    busy_s = [float(str(row["seconds"])) for row in result.metrics if row["kind"] == "train"]
    told = {
        "train_share": sum(loop_s) / sum(busy_s),
        "epoch_s": statistics.median(loop_s),
        "busy_s": statistics.median(busy_s),
        "plain_epoch_s": plain_s,
        "images": images,
    }
    file.write_text(json.dumps({"training": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
