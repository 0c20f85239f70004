"""One simulated job in a process of its own; `benchmarks.rounds` starts it."""

import json
import sys
from pathlib import Path

from benchmarks.machine import own_peak_rss_mb
from prefect_federated import simulate


def main(file: Path, options: str) -> None:
    """Runs the job and writes what it saw.

    Args:
        file: Where to write it.
        options: What `simulate` is given, as JSON.
    """
    result = simulate("fedavg", **json.loads(options))
    file.write_text(json.dumps({"table": list(result.metrics), "peak_rss_mb": own_peak_rss_mb()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
