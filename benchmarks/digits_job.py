"""The job of `benchmarks.digits`, in a process of its own; nothing heavy is imported before it."""

import json
import sys
import time
from pathlib import Path

from prefect_federated import simulate


def main(file: Path, sites: int, rounds: int) -> None:
    """Runs the job and writes what it saw."""
    began = time.time()
    result = simulate(
        "fedavg",
        sites=sites,
        parameters={
            "executor": "benchmarks.digits_sites:sites",
            "rounds": rounds,
            "config": {"sites": sites, "momentum": 0.9, "threads": 1},
        },
    )
    file.write_text(
        json.dumps({"table": list(result.metrics), "began": began, "ended": time.time()})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
