"""Jobs for `benchmarks.classical`: in the simulator in this process, or timed in a fresh one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.classical.data import CHECKOUT, DATASET
from prefect_federated.messages import JsonValue

if TYPE_CHECKING:
    from prefect_federated.tasks.tabular import FittedRef


@dataclass(frozen=True)
class Timed:
    """A job that was timed in a process of its own.

    Args:
        model: The folder of the fitted model.
        data: The sites' folders.
        total_s: From the start of the process to its end.
        skipped: Why it could not be; the others are then empty.
    """

    model: Path = Path()
    data: Path = Path()
    total_s: float = 0.0
    skipped: str = ""


@dataclass
class Bench:
    """What a row is measured with.

    Args:
        folder: For files.
        seeds: How many; 0, 1, ...
        timed: Row -> its timed job, which is of seed 0.
    """

    folder: Path
    seeds: int
    timed: Mapping[str, Timed] = field(default_factory=dict)
    _made: int = field(default=0, init=False)

    def new_folder(self) -> Path:
        """Returns a path in the folder that is not there yet."""
        self._made += 1
        return self.folder / f"job-{self._made}"


def simulated(flow: str, data: Path, output: Path, **parameters: JsonValue) -> "FittedRef":
    """Runs a job in this process, without models of each site alone; returns its result.

    All jobs of a process have one temporary Prefect server.
    """
    from prefect_federated import simulate
    from prefect_federated.tasks.tabular import FittedRef

    given = {"dataset": DATASET, "compare_alone": False, "quorum": 1.0, **parameters}
    returned = simulate(flow, data=data, output=output, parameters=given).returned
    assert isinstance(returned, FittedRef)
    return returned


def timed(flow: str, data: Path, folder: Path, **parameters: JsonValue) -> Timed:
    """Runs a job in a fresh process with an empty Prefect database.

    Raises:
        SystemExit: it failed; with the end of what it wrote.
    """
    output, log_file = folder / "output", folder / "log"
    given: dict[str, JsonValue] = {"dataset": DATASET, "quorum": 1.0, **parameters}
    command = [
        sys.executable, "-m", "prefect_federated", "simulate", flow, f"--data={data}",
        f"--output={output}", *(f"--param={n}={json.dumps(v)}" for n, v in given.items()),
    ]  # fmt: skip
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    environment.pop("PREFECT_API_URL", None)  # a server of its own, from a cold start
    began = time.monotonic()
    with log_file.open("wb") as log:
        code = subprocess.run(
            command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log
        ).returncode
    total_s = time.monotonic() - began
    if code:
        raise SystemExit(log_file.read_text()[-4000:])
    return Timed(next(output.glob("models/*/card.json")).parent, data, total_s)


def over_seeds(name: str, values: Sequence[float]) -> dict[str, object]:
    """Returns the mean of a figure, and the figure of each seed."""
    return {
        name: round(float(np.mean(values)), 5),
        f"{name}_by_seed": [round(float(value), 5) for value in values],
    }
