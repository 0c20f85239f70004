"""The job of `benchmarks.digits`, in a process of its own; nothing heavy is imported before it."""

import json
import sys
import time
from pathlib import Path

from prefect_federated import simulate

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits"


def main(file: Path, data: Path, rounds: int) -> None:
    """Runs the job on the sites' folders in `data` and writes what it saw."""
    began = time.time()
    result = simulate(
        "fedavg",
        data=data,
        code=[EXAMPLE],
        parameters={
            "executor": "digits",
            "rounds": rounds,
            "config": {"epochs": 1, "batch_size": 32, "momentum": 0.9, "threads": 1},
        },
    )
    file.write_text(
        json.dumps({"table": list(result.metrics), "began": began, "ended": time.time()})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
