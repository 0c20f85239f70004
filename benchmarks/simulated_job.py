"""One simulated job in a process of its own; `benchmarks.rounds` starts it."""

import json
import sys
from pathlib import Path

from benchmarks.machine import own_peak_rss_mb
from prefect_federated import simulate


def main(file: Path, sites: int, params: int, rounds: int, threads: int) -> None:
    """Runs the job and writes what it saw."""
    result = simulate(
        "fedavg",
        sites=sites,
        threads=threads,
        parameters={
            "executor": "benchmarks.random_model",
            "rounds": rounds,
            "config": {"params": params},
        },
    )
    file.write_text(json.dumps({"table": list(result.metrics), "peak_rss_mb": own_peak_rss_mb()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:6]))
