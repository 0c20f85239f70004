"""Seconds a round, memory and bytes of a NumPy FedAvg with random tensors.

    python -m benchmarks.rounds --mode deployed --sites 2 --params 25000000 --rounds 5 --json FILE

`deployed` provisions a federation, starts server and sites as processes under mutual TLS, and
submits the job with `prefect deployment run`. `simulated` runs the same job on virtual sites, in a
process of its own, from a cold start with an empty Prefect database.
"""

import itertools
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import httpx
import psutil

from benchmarks.machine import describe_machine, peak_rss_mb
from prefect_federated.agents.sandbox import Sandbox, start_sandbox

EXECUTOR = "benchmarks.random_model"
CHECKOUT = Path(__file__).resolve().parent.parent


def main(
    *,
    mode: Literal["deployed", "simulated"],
    sites: int = 2,
    params: int = 1000,
    rounds: int = 20,
    sample: Annotated[
        int | None, cyclopts.Parameter(help="Sites drawn for each round; all if left out.")
    ] = None,
    threads: Annotated[
        int | None, cyclopts.Parameter(help="Site tasks at the same time, simulated only.")
    ] = None,
    processes: Annotated[
        int | None, cyclopts.Parameter(help="Worker processes, simulated only; threads if not.")
    ] = None,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Measure one job and print what was measured as JSON."""
    machine = describe_machine()
    measure = _deployed if mode == "deployed" else _simulated
    work = Work(sites, params, rounds, sample, threads, processes)
    with tempfile.TemporaryDirectory(prefix="prefect-federated-bench-") as folder:
        result = measure(Path(folder), work)
    what = {key: value for key, value in asdict(work).items() if value is not None}
    text = json.dumps({"mode": mode, **what, **result, "machine": machine}, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


@dataclass(frozen=True)
class Work:
    """What is measured."""

    sites: int
    params: int
    rounds: int
    sample: int | None = None
    threads: int | None = None
    processes: int | None = None

    def parameters(self) -> dict[str, object]:
        """Returns the flow's parameters."""
        sampled = {} if self.sample is None else {"sites_per_round": self.sample}
        config = {"params": self.params}
        return {"executor": EXECUTOR, "rounds": self.rounds, "config": config, **sampled}


def _simulated(folder: Path, work: Work) -> dict[str, object]:
    """Runs the simulator in a process of its own, from a cold start."""
    result_file = folder / "result.json"
    options = {
        "sites": work.sites,
        "threads": work.threads or os.cpu_count(),
        "processes": work.processes,
        "parameters": work.parameters(),
    }
    command = [
        sys.executable, "-m", "benchmarks.simulated_job", str(result_file), json.dumps(options),
    ]  # fmt: skip
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    began = time.time()
    subprocess.run(command, check=True, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL)
    total_s = time.time() - began
    told = json.loads(result_file.read_text())
    return {
        **_figures(told["table"], began),
        "total_s": total_s,
        "prefect_records_a_round": _records(folder / "prefect" / "prefect.db") / work.rounds,
        "server_peak_rss_mb": told["peak_rss_mb"],
        "site_peak_rss_mb": told["peak_rss_mb"],
    }


def _records(database: Path) -> float:
    """Returns how many rows Prefect has of task runs, their states, logs, artifacts and events."""
    tables = ("task_run", "task_run_state", "log", "artifact", "events")
    with sqlite3.connect(database) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {name}").fetchone() for name in tables]
    return float(sum(count for (count,) in counts))


def _deployed(folder: Path, work: Work) -> dict[str, object]:
    names = [f"site-{number}" for number in range(1, work.sites + 1)]
    sandbox = start_sandbox(folder / "sandbox", names, code=[CHECKOUT])
    try:
        with sandbox.connected() as environment:
            return _run_job(sandbox, environment, work.params, work.rounds, work.sample)
    finally:
        sandbox.stop()


def _run_job(
    sandbox: Sandbox,
    environment: dict[str, str],
    params: int,
    rounds: int,
    sample: int | None = None,
) -> dict[str, object]:
    parameters = Work(0, params, rounds, sample).parameters()
    prefect = str(Path(sys.executable).with_name("prefect"))
    with (
        httpx.Client(
            base_url=f"{environment['PREFECT_API_URL']}/", trust_env=False, timeout=60
        ) as api,
        _watching_memory() as memory,
    ):
        submitted = time.time()
        out = subprocess.run(
            [
                prefect,
                "deployment",
                "run",
                "fedavg/default",
                "--params",
                json.dumps(parameters),
            ],
            check=True,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        ).stdout
        run_id = next(line.split()[-1] for line in out.splitlines() if "UUID" in line)
        state = _wait(api, run_id)
        ended = time.time()
    if state["type"] != "COMPLETED":
        raise SystemExit(f"the job ended {state['type']}: {state['message']}")
    return {
        **_figures(_table(environment, run_id), submitted),
        "total_s": ended - submitted,
        "server_peak_rss_mb": max(memory["fed-controller"].values()),
        "site_peak_rss_mb": max(memory["fed-site"].values()),
    }


def _wait(api: httpx.Client, run_id: str) -> dict[str, Any]:
    """Waits until a run has ended and returns its state."""
    while True:
        state: dict[str, Any] = api.get(f"flow_runs/{run_id}").raise_for_status().json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CANCELLED"):
            return state
        time.sleep(0.5)


def _table(environment: dict[str, str], run_id: str) -> list[dict[str, Any]]:
    """Returns the job's table, from its artifact."""
    with httpx.Client(base_url=f"{environment['PREFECT_API_URL']}/", trust_env=False) as api:
        query = {
            "artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": ["fedavg-rounds"]}},
            "sort": "UPDATED_DESC",
            "limit": 1,
        }
        found = api.post("artifacts/filter", json=query).raise_for_status().json()
    table: list[dict[str, Any]] = json.loads(found[0]["data"])
    return table


def _figures(table: list[dict[str, Any]], submitted: float) -> dict[str, object]:
    """A round lasts until the next one begins, so all that it costs is in it, the snapshot too."""
    rounds = [row for row in table if row["kind"] == "train"]
    begins = [datetime.fromisoformat(row["began"]).timestamp() for row in rounds]
    round_s = [round(after - begin, 4) for begin, after in itertools.pairwise(begins)]
    round_s.append(rounds[-1]["seconds"])
    return {
        "submit_to_first_round_s": begins[0] - submitted,
        "round_s": round_s,
        "round_s_median": statistics.median(round_s),
        "bytes_sent": sum(row["bytes_sent"] for row in table),
        "bytes_received": sum(row["bytes_received"] for row in table),
    }


@contextmanager
def _watching_memory() -> Iterator[dict[str, dict[int, float]]]:
    """Notes, until the block ends, the peak memory of controllers and sites' job processes."""
    peaks: dict[str, dict[int, float]] = {"fed-controller": {}, "fed-site": {}}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for process in psutil.process_iter(["pid", "name"]):
                found = peaks.get(process.info["name"])
                if found is not None:
                    pid = process.info["pid"]
                    found[pid] = max(found.get(pid, 0.0), peak_rss_mb(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    cyclopts.run(main)
