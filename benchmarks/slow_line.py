"""Seconds a round of a deployed job over slow lines, over what the bytes alone would take.

    python -m benchmarks.slow_line --json FILE

Each site reaches the server through a line of its own (`tcp_proxy`), all of its traffic in it: the
job's and Prefect's. The bytes of a round are the model down and the update up, of one site.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import cyclopts

from benchmarks import rounds as rounds_benchmark
from benchmarks.besieged import besieged
from benchmarks.machine import describe_machine


def main(
    *,
    sites: int = 2,
    params: Annotated[int, cyclopts.Parameter(help="Numbers (float32) of the model.")] = 4_500_000,
    rounds: int = 4,
    mbit_per_s: Annotated[float, cyclopts.Parameter(help="Of each line, each way.")] = 30,
    delay_ms: Annotated[float, cyclopts.Parameter(help="Of each line, each way.")] = 50,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Measure one job and print what was measured as JSON."""
    machine = describe_machine()
    names = [f"site-{number}" for number in range(1, sites + 1)]
    with (
        tempfile.TemporaryDirectory(prefix="prefect-federated-slow-") as folder,
        besieged(Path(folder) / "sandbox", names) as federation,
        federation.sandbox.connected() as environment,
    ):
        for line in federation.lines.values():
            line.delay_s, line.bits_per_s = delay_ms / 1e3, mbit_per_s * 1e6
        result = cast(
            dict[str, Any],
            rounds_benchmark._run_job(federation.sandbox, environment, params, rounds),
        )
    round_bytes = 2 * 4 * params
    line_s = round_bytes * 8 / (mbit_per_s * 1e6)
    text = json.dumps(
        {
            "sites": sites,
            "params": params,
            "mbit_per_s": mbit_per_s,
            "delay_ms": delay_ms,
            "round_bytes_of_a_site": round_bytes,
            "bytes_over_bandwidth_s": line_s,
            "ratio": result["round_s_median"] / line_s,
            **result,
            "machine": machine,
        },
        indent=2,
    )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    cyclopts.run(main)
