"""How long statistics of many sites take, in the simulator and in a deployed federation.

    python -m benchmarks.statistics --sites 4 --json FILE
    python -m benchmarks.statistics --rows 2500000 --source sqlite
    python -m benchmarks.statistics --deployed

`total_s` lasts from the start of a fresh process, `prefect-federated simulate statistics`, to its
end: imports, an empty Prefect database, all statistics, the report. The sites' data are there
before, with an open privacy policy: CSV files of 30 features in 2 splits, or a table of 20 columns
in a database. With a database, each site runs in a process of its own, whose most memory is told.
`cpu_s` is what all of its processes, Prefect's server too, have taken of the processors.
`matches_pooled` says whether all sites have answered and all numbers are those of the pooled rows:
counts, bins, minima and maxima exactly, sums, means and variances to 1e-12, correlations to 1e-9,
and each quantile within its bound; `compared` is how many were compared. With `--deployed`,
`report_s` lasts from the moment for which a run is scheduled in a running federation to its
completion, report included.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import psutil

from benchmarks.machine import describe_machine, peak_rss_mb
from benchmarks.statistics_data import Check, write_databases, write_files
from prefect_federated.statistics.schema import Statistics

CHECKOUT = Path(__file__).resolve().parent.parent
_LOOK_S = 0.1


def main(
    *,
    sites: int = 4,
    rows: Annotated[
        int | None, cyclopts.Parameter(help="Of each split at each site; 10,000 if left out.")
    ] = None,
    source: Literal["csv", "sqlite", "postgresql"] = "csv",
    deployed: Annotated[
        bool, cyclopts.Parameter(help="Measure a scheduled run in a federation, instead.")
    ] = False,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Measure and print what was measured as JSON."""
    found = measure(sites, rows or 10_000, source, deployed)
    text = json.dumps(found, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


def measure(sites: int, rows: int, source: str, deployed: bool) -> dict[str, object]:
    """Returns what a job took, and whether its numbers are those of the pooled rows.

    Args:
        sites: Number of sites.
        rows: Of each split at each site.
        source: "csv", "sqlite" or "postgresql".
        deployed: Whether in a federation of real processes.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-federated-bench-") as name, ExitStack() as on:
        folder = Path(name)
        data = folder / "data"
        pooled = (
            write_files(data, sites, rows)
            if source == "csv"
            else write_databases(data, sites, rows, source, on)
        )
        machine = describe_machine()
        run = _scheduled if deployed else _simulated
        figures, result = run(folder, sites, is_large=source != "csv")
        check = Check(result, pooled, sites)
        return {
            "sites": sites,
            "rows": rows,
            "source": source,
            **figures,
            "features": len({f for split in result.splits.values() for f in split.features}),
            "splits": len(result.splits),
            "matches_pooled": check.matches,
            "compared": check.compared,
            "mismatches": check.wrong[:10],
            "withheld": len(result.withheld),
            "machine": machine,
        }


def _simulated(folder: Path, sites: int, is_large: bool) -> tuple[dict[str, object], Statistics]:
    output = folder / "output"
    command = [
        sys.executable, "-m", "prefect_federated", "simulate", "statistics",
        f"--sites={sites}", f"--data={folder / 'data'}", f"--output={output}",
        "--param=dataset=benchmark", *([f"--processes={sites}"] if is_large else []),
    ]  # fmt: skip
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    environment.pop("PREFECT_API_URL", None)  # a server of its own, from a cold start
    began, began_cpu_s = time.monotonic(), _processor_s()
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log)
        peaks = _watch(job) if is_large else {}
        code = job.wait()
    total_s = time.monotonic() - began
    if code:
        raise SystemExit((folder / "log").read_text()[-4000:])
    file = next(output.glob("*/statistics.json"))
    figures: dict[str, object] = {
        "total_s": round(total_s, 2),
        "cpu_s": round(_processor_s() - began_cpu_s, 2),
    }
    if is_large:
        figures["site_peak_rss_mb"] = sorted(round(peak) for peak in peaks.values())
    return figures, Statistics.model_validate_json(file.read_text())


def _processor_s() -> float:
    """Returns the processor time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(job: "subprocess.Popen[bytes]") -> dict[int, float]:
    """Returns the most memory that each of the sites' processes has held, in MB."""
    peaks: dict[int, float] = {}
    while job.poll() is None:
        with suppress(psutil.Error):  # the job has ended, or is about to
            for child in psutil.Process(job.pid).children(recursive=True):
                with suppress(psutil.Error):  # many a child lives for a moment only
                    if "process_runner" in " ".join(child.cmdline()):
                        peaks[child.pid] = max(peaks.get(child.pid, 0.0), peak_rss_mb(child.pid))
        time.sleep(_LOOK_S)
    return peaks


def _scheduled(folder: Path, sites: int, is_large: bool) -> tuple[dict[str, object], Statistics]:
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled

    from prefect_federated.agents.sandbox import start_sandbox
    from prefect_federated.tasks.statistics_result import reference_in
    from tests.integration.running import attended, eventually

    names = [f"site-{number + 1}" for number in range(sites)]
    sandbox = start_sandbox(folder / "sandbox", names, data=folder / "data")
    try:
        with attended(sandbox, folder) as federation:
            client = federation.client
            deployment = client.read_deployment_by_name("statistics/default")
            at = datetime.now(UTC) + timedelta(seconds=15)
            run = client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"dataset": "benchmark"},
                state=Scheduled(scheduled_time=at),
            )

            def ended() -> bool:
                state = client.read_flow_run(run.id).state
                return state is not None and state.is_final()

            eventually(ended, "the run ends", within_s=300)
            run = client.read_flow_run(run.id)
            assert run.state is not None
            if run.state.type != StateType.COMPLETED:
                raise SystemExit(f"the run is {run.state.name}: {run.state.message}")
            took = (run.state.timestamp - at).total_seconds()
            reference = reference_in(run.state.result())
            assert reference is not None
    finally:
        sandbox.stop()
    result = Statistics.model_validate_json(Path(reference.path).read_text())
    return {"report_s": round(took, 2)}, result


if __name__ == "__main__":
    cyclopts.run(main)
