"""How federated algorithms fare when the sites' labels differ, on any set of labelled images.

    python -m benchmarks.heterogeneity --data PATH --sites 8 --alphas 1.0 0.5 0.3 0.1 \
        --algorithms fedavg fedprox fedopt scaffold --rounds 20 --seeds 3 --json FILE --plot DIR

The training images are divided by label with Dirichlet's distribution: the smaller alpha, the more
the sites differ. FedAvg runs for each alpha, the other algorithms at the smallest one, each with
each seed, in the simulator. The test images are divided evenly, and each is at one site, so the
mean of the sites' accuracies, weighted by their images, is that of the global model on all of them.

Each run is written to FILE when it is done; the same command goes on where it was interrupted.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import cyclopts

from benchmarks.heterogeneity_record import ALGORITHMS, Record, Run, Settings, draw, planned
from benchmarks.heterogeneity_run import train
from benchmarks.images import FASHION_MNIST, UnfitImages, read_images

_Several = cyclopts.Parameter(consume_multiple=True)


def main(
    *,
    data: Annotated[
        Path, cyclopts.Parameter(help="An .npz file, or a folder of idx files, with images.")
    ] = FASHION_MNIST,
    sites: int = 8,
    alphas: Annotated[tuple[float, ...], _Several] = (1.0, 0.5, 0.3, 0.1),
    algorithms: Annotated[tuple[str, ...], _Several] = ALGORITHMS,
    rounds: int = 20,
    seeds: Annotated[int, cyclopts.Parameter(help="Runs of each setting: seeds 0, 1, ...")] = 3,
    subset: Annotated[int, cyclopts.Parameter(help="Training images to draw; all if 0.")] = 4000,
    test_subset: Annotated[int, cyclopts.Parameter(help="Test images to draw; all if 0.")] = 2000,
    epochs: Annotated[int, cyclopts.Parameter(help="A site's passes over its images.")] = 4,
    steps_per_epoch: Annotated[int, cyclopts.Parameter(help="Steps of a pass.")] = 5,
    lr: Annotated[float, cyclopts.Parameter(help="Learning rate at the sites.")] = 0.1,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
    plot: Annotated[Path | None, cyclopts.Parameter(help="Folder for the two pictures.")] = None,
) -> None:
    """Train with each algorithm; print, write and draw the accuracies."""
    try:
        settings = Settings(
            str(data), sites, rounds, epochs, steps_per_epoch, lr, subset, test_subset
        )
        runs = planned(alphas, algorithms, seeds)
        images = read_images(data, subset or None, test_subset=test_subset or None)
        record = Record.at(json_file, settings)
        if len(images.test.classes) < sites:
            raise ValueError(
                f"{len(images.test.classes)} test images are too few for {sites} sites."
            )
    except (UnfitImages, ValueError) as error:
        raise SystemExit(f"heterogeneity: {error}") from error
    with tempfile.TemporaryDirectory(prefix="prefect-federated-bench-") as folder:
        os.environ["PREFECT_HOME"] = str(Path(folder) / "prefect")  # before Prefect is imported
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        for number, run in enumerate(runs, start=1):
            if not record.has(run):
                record.add(run, train(run, images, settings, Path(folder)))
            print(f"{number}/{len(runs)} {_told(run, record)}", flush=True)
    print(record.table())
    if plot is not None:
        for picture in draw(record, runs, plot):
            print(picture)


def _told(run: Run, record: Record) -> str:
    result = record.result(run)
    ended = f"failed: {result.error}" if result.error else f"accuracy {result.accuracy[-1]:.4f}"
    return f"{run.algorithm}, alpha {run.alpha:g}, seed {run.seed}: {ended}, {result.seconds:.0f} s"


if __name__ == "__main__":
    cyclopts.run(main)
