"""XGBoost's own collective on this machine: a process a site, over the sites' own Parquet files.

What the histogram job is compared with. XGBoost's tracker and its workers talk over loopback; ranks
are in the order of the sites' names. As in the job, each round is evaluated on the test rows.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Boosting:
    """What is trained.

    Args:
        parameters: XGBoost's.
        rounds: How many.
        label: The column to predict.
        features: The columns to predict from, in order.
        categories: Column of text -> its values in order.
    """

    parameters: Mapping[str, object]
    rounds: int
    label: str
    features: Sequence[str]
    categories: Mapping[str, Sequence[str]]

    def matrix(self, rows: pd.DataFrame) -> Any:
        """Returns rows as an `xgboost.DMatrix`."""
        import xgboost

        typed = rows[list(self.features)].astype(
            {
                name: pd.CategoricalDtype(list(self.categories[name]))
                if name in self.categories
                else "float64"
                for name in self.features
            }
        )
        threads = self.parameters.get("nthread")
        label = rows[self.label].to_numpy(dtype=float)
        return xgboost.DMatrix(typed, label, enable_categorical=True, nthread=threads)

    def train(self, rows: pd.DataFrame) -> Any:
        """Returns a booster of some rows, in this process."""
        import xgboost

        return xgboost.train(dict(self.parameters), self.matrix(rows), self.rounds)


def own_collective(data: Path, boosting: Boosting, folder: Path) -> tuple[bytes, float]:
    """Returns the model as UBJSON, and the seconds from the processes' start to their end.

    Args:
        data: The sites' folders, as `data.write` writes them.
        boosting: What is trained.
        folder: For the model and the processes' output; must not be there.
    """
    from xgboost.tracker import RabitTracker

    folder.mkdir(parents=True)
    sites = sorted(path.name for path in data.iterdir() if path.is_dir())
    began = time.monotonic()
    tracker = RabitTracker(n_workers=len(sites), host_ip="127.0.0.1", sortby="task")
    tracker.start()
    workers = []
    for rank, site in enumerate(sites):
        told = {
            "site": str(data / site),
            "model": str(folder / f"{rank}.ubj"),
            "arguments": {**tracker.worker_args(), "dmlc_task_id": f"{rank:03d}"},
            "boosting": asdict(boosting),
        }
        command = [sys.executable, "-m", "benchmarks.classical.collective", json.dumps(told)]
        with (folder / f"{rank}.log").open("wb") as log:
            workers.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    took = time.monotonic() - began
    if any(codes):
        logs = [(folder / f"{rank}.log").read_text()[-2000:] for rank in range(len(sites))]
        raise SystemExit("\n".join(logs))
    tracker.free()
    models = {(folder / f"{rank}.ubj").read_bytes() for rank in range(len(sites))}
    if len(models) > 1:
        raise SystemExit("XGBoost's own collective gave different models at different ranks")
    return models.pop(), took


def main(told: Mapping[str, Any]) -> None:
    """Trains as one rank, in a process of its own."""
    import xgboost
    from xgboost.collective import CommunicatorContext

    boosting, site = Boosting(**told["boosting"]), Path(told["site"])
    train, test = (pd.read_parquet(site / f"{split}.parquet") for split in ("train", "test"))
    with CommunicatorContext(**told["arguments"]):
        matrix, evaluated = boosting.matrix(train), boosting.matrix(test)
        booster = xgboost.train(
            dict(boosting.parameters), matrix, boosting.rounds, evals=[(evaluated, "test")],
            verbose_eval=False,
        )  # fmt: skip
        Path(told["model"]).write_bytes(booster.save_raw("ubj"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
