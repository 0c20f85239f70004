"""How long federated training of a small network on digits takes, and what of it is training.

    python -m benchmarks.digits --sites 4 --rounds 20 --json FILE

`total_s` lasts from the start of a fresh process to its end: imports, FedAvg in the simulator with
the executor of examples/digits and one local epoch a round, an empty Prefect database at the start.
The sites' folders are there before: scikit-learn's digits, divided evenly. `cpu_s` is what its
processes, Prefect's server too, have taken of the processors. `accuracy` is that of the last global
model on images that no site trains on.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from benchmarks.machine import describe_machine

CHECKOUT = Path(__file__).resolve().parent.parent
PREPARE = CHECKOUT / "examples" / "digits" / "prepare.py"


def main(
    *,
    sites: int = 4,
    rounds: int = 20,
    epoch_s: Annotated[
        float, cyclopts.Parameter(help="Seconds of the epoch whose share is measured; 0 for none.")
    ] = 2.0,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Measure both and print what was measured as JSON."""
    text = json.dumps(measure(sites, rounds, epoch_s), indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


def measure(sites: int, rounds: int, epoch_s: float = 0.0) -> dict[str, object]:
    """Returns what the two jobs took; each runs in a fresh process.

    Args:
        sites: Number of sites.
        rounds: Rounds on the digits.
        epoch_s: Seconds of the epoch whose share is measured; nothing of it is if 0.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="prefect-federated-bench-") as folder:
        data = Path(folder) / "data"
        divide = [sys.executable, str(PREPARE), str(data), f"--sites={sites}", "--partitioner=iid"]
        subprocess.run(divide, check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
        before = _processor_s()
        began = time.time()
        told = _in_fresh_process("digits_job", Path(folder), str(data), str(rounds))
        total_s = time.time() - began
        cpu_s = _processor_s() - before
        share = (
            _in_fresh_process("training_share", Path(folder), str(epoch_s)) if epoch_s > 0 else {}
        )
    return {
        "sites": sites,
        "rounds": rounds,
        "total_s": round(total_s, 2),
        "cpu_s": round(cpu_s, 2),
        **_figures(told, began),
        **share,
        "machine": machine,
    }


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _figures(told: dict[str, Any], began: float) -> dict[str, object]:
    """Returns the accuracy, and when each part of the job had ended, in seconds from the start."""
    rows = told["table"]
    rounds = [row for row in rows if row["kind"] == "train"]
    first, last = (
        datetime.fromisoformat(row["began"]).timestamp() for row in (rounds[0], rows[-1])
    )
    return {
        "accuracy": rows[-1]["accuracy"],
        "round_s_median": statistics.median(row["seconds"] for row in rounds),
        "seconds_until": {
            "simulate_called": round(told["began"] - began, 2),
            "first_round": round(first - began, 2),
            "last_round_done": round(last - began, 2),
            "simulate_returned": round(told["ended"] - began, 2),
        },
    }


def _in_fresh_process(module: str, folder: Path, *options: str) -> dict[str, Any]:
    told = folder / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", str(told), *options]
    environment = {**os.environ, "PREFECT_HOME": str(folder / f"prefect-{module}")}
    environment.pop("PREFECT_API_URL", None)  # a server of its own, from a cold start
    subprocess.run(command, check=True, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(told.read_text())
    return result


if __name__ == "__main__":
    cyclopts.run(main)
