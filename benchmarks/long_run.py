"""Whether a controller's memory grows over a long job: a NumPy FedAvg, deployed.

    python -m benchmarks.long_run --rounds 500 --params 5000000 --json FILE

The controller's resident memory (RSS) goes up and down within a round, by the updates in flight. So
what is given for a round is the most of the samples during the ten rounds up to it, which is the
same moment of a round each time; their median, which is not, stands beside it.
"""

import bisect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import httpx
import psutil

from benchmarks.machine import describe_machine
from prefect_federated.agents.sandbox import SERVER, Sandbox, start_sandbox

CHECKOUT = Path(__file__).resolve().parent.parent
_CONTROLLER = "fed-controller"
_EARLY_ROUND = 20
_WINDOW = 10  # rounds
_SAMPLE_S = 0.05


class Samples:
    """The controller's memory by time, in MB (1e6 bytes)."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rss_mb: list[float] = []

    def add(self, rss_bytes: int) -> None:
        """Notes the memory of this moment."""
        self.times.append(time.time())
        self.rss_mb.append(rss_bytes / 1e6)

    def between(self, begin: float, end: float) -> list[float]:
        """Returns the samples of a time, in seconds since the epoch."""
        first, last = bisect.bisect_left(self.times, begin), bisect.bisect_right(self.times, end)
        return self.rss_mb[first:last]


def main(
    *,
    rounds: int = 500,
    params: int = 5_000_000,
    sites: int = 2,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Run one long job and print the controller's memory early and late as JSON."""
    if rounds < 2 * _EARLY_ROUND:
        raise SystemExit(f"--rounds {rounds} is too short; it must be {2 * _EARLY_ROUND} at least.")
    machine = describe_machine()
    names = [f"site-{number}" for number in range(1, sites + 1)]
    with tempfile.TemporaryDirectory(prefix="prefect-federated-bench-") as folder:
        sandbox = start_sandbox(Path(folder) / "sandbox", names, code=[CHECKOUT])
        try:
            figures = _run(sandbox, rounds, params)
        finally:
            sandbox.stop()
    work = {"rounds": rounds, "params": params, "sites": sites}
    text = json.dumps({**work, **figures, "machine": machine}, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


def _run(sandbox: Sandbox, rounds: int, params: int) -> dict[str, object]:
    config = {"params": params}
    parameters = {"executor": "benchmarks.random_model", "rounds": rounds, "config": config}
    prefect = str(Path(sys.executable).with_name("prefect"))
    with (
        sandbox.connected() as environment,
        httpx.Client(
            base_url=f"{environment['PREFECT_API_URL']}/", trust_env=False, timeout=60
        ) as api,
        _sampling(sandbox) as samples,
    ):
        out = subprocess.run(
            [prefect, "deployment", "run", "fedavg/default", "--params", json.dumps(parameters)],
            check=True,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        ).stdout
        run_id = next(line.split()[-1] for line in out.splitlines() if "UUID" in line)
        state = _wait(api, run_id)
        if state["type"] != "COMPLETED":
            raise SystemExit(f"the job ended {state['type']}: {state['message']}")
        began = _begins(api, run_id)
    return _figures(began, samples, rounds)


def _figures(began: dict[int, float], samples: Samples, rounds: int) -> dict[str, object]:
    lasts = [began[number + 1] - began[number] for number in range(1, rounds)]
    found: dict[str, object] = {"round_s_median": round(statistics.median(lasts), 4)}
    most = {}
    for number in (_EARLY_ROUND, *range(100, rounds, 100), rounds):
        end = began.get(number + 1, began[number] + lasts[-1])
        seen = samples.between(began[number - _WINDOW + 1], end)
        most[number] = max(seen)
        found[f"rss_mb_round_{number}"] = round(most[number], 1)
        found[f"rss_mb_median_round_{number}"] = round(statistics.median(seen), 1)
    return {**found, "ratio": round(most[rounds] / most[_EARLY_ROUND], 4)}


def _wait(api: httpx.Client, run_id: str) -> dict[str, Any]:
    """Waits until a run has ended and returns its state."""
    while True:
        state: dict[str, Any] = api.get(f"flow_runs/{run_id}").raise_for_status().json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"):
            return state
        time.sleep(1)


def _begins(api: httpx.Client, run_id: str) -> dict[int, float]:
    """Returns when each round began, from the job's table."""
    query = {
        "artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": ["fedavg-rounds"]}},
        "sort": "UPDATED_DESC",
        "limit": 1,
    }
    found = api.post("artifacts/filter", json=query).raise_for_status().json()
    return {
        row["round"]: datetime.fromisoformat(row["began"]).timestamp()
        for row in json.loads(found[0]["data"])
        if row["kind"] == "train"
    }


@contextmanager
def _sampling(sandbox: Sandbox) -> Iterator[Samples]:
    """Samples the memory of the controller, which appears and ends while the block runs."""
    samples, done = Samples(), threading.Event()

    def watch() -> None:
        controller: psutil.Process | None = None
        while not done.wait(_SAMPLE_S):
            try:
                if controller is None:
                    controller = _find_controller(sandbox)
                else:
                    samples.add(controller.memory_info().rss)
            except psutil.Error:
                controller = None

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _find_controller(sandbox: Sandbox) -> psutil.Process | None:
    """Returns the sandbox's controller; other jobs may run on this machine beside it."""
    for process in sandbox.processes:
        found = process.find() if process.name == SERVER else None
        for child in found.children(recursive=True) if found else ():
            if child.name() == _CONTROLLER:
                return child
    return None


if __name__ == "__main__":
    cyclopts.run(main)
