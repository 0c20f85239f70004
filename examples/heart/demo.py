"""The demo: four hospitals train one model together, for real, on this machine (`make demo`).

Provisions a federation, starts its server and four sites as processes that speak only mutual TLS,
runs `prefect deployment run 'fedavg/default'` with a user's startup kit, and shows the rounds as
they end. Everything it writes is in the folder `demo` of the checkout.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import cyclopts
import heart
from baselines import Baselines, accuracy, baselines, together
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prepare import SITES, split_by_hospital
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from prefect_federated.agents.sandbox import SERVER, Sandbox, start_sandbox
from prefect_federated.errors import FederatedError
from prefect_federated.tasks.site_runs import SITE_FLOW
from prefect_federated.tasks.snapshots import read_model

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
JOB_S = 300.0  # longer than this no machine takes; something hangs
CALL_LINE = re.compile(
    r"(?P<what>round \d+|evaluate): (?P<sites>\d+/\d+) sites, (?P<seconds>[\d.]+) s, "
    r"(?P<sent>[\d.]+ \w+) sent, (?P<received>[\d.]+ \w+) received(?P<metrics>.*)"
)

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(FederatedError):
    """The demo did not come to its end; the message says why and which log says more."""


@dataclass
class Rounds:
    """The calls to the sites that were shown, read from the job's log at Prefect's API."""

    total: int
    shown: set[str] = field(default_factory=set)
    joined: bool = False
    lines: int = 0

    @property
    def done(self) -> int:
        """Rounds that have ended."""
        return sum(what.startswith("round") for what in self.shown)

    def read(self, client: SyncPrefectClient, run: UUID) -> Iterator[str]:
        """Yields a row for each call that ended since the last time."""
        job = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        known = max(0, self.lines - 50)  # lines may arrive out of order
        entries = client.read_logs(job, limit=200, offset=known)
        self.lines = known + len(entries)
        for entry in entries:
            self.joined = self.joined or entry.message.startswith("joined:")
            found = CALL_LINE.match(entry.message)
            if found and found["what"] not in self.shown:
                self.shown.add(found["what"])
                metrics = dict(re.findall(r"(\w+) ([-+.\de]+)", found["metrics"]))
                yield _row(
                    found["what"].removeprefix("round "), found["sites"], found["seconds"],
                    found["sent"], found["received"],
                    # before training, and at the end of the job
                    metrics.get("val_loss") or metrics.get("loss", ""),
                    metrics.get("val_accuracy") or metrics.get("accuracy", ""),
                )  # fmt: skip


def _row(*cells: str) -> str:
    widths = (8, 6, 8, 9, 9, 8, 9)
    return "  " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def demo(*, keep: bool = False, folder: Path = CHECKOUT / "demo", rounds: int = 20) -> int:
    """Train a model on the data of four hospitals, each of which keeps its own.

    Args:
        keep: Leave the federation running at the end.
        folder: Where all that the demo writes goes.
        rounds: Rounds to train.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    try:
        with _federation(folder, keep) as sandbox:
            model_file, evaluated = _train(sandbox, rounds)
            console.print("\ncomparing with each hospital alone and with pooled training ...")
            reached = _check_model(folder / "data", model_file, evaluated)
            _show_result(reached, baselines(folder / "data", rounds))
            _show_where(sandbox, model_file, keep)
    except FederatedError as error:
        console.print(f"\n[red bold]The demo failed:[/] {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    console.print(f"\ndone in {time.monotonic() - began:.0f} s")
    return 0


@contextmanager
def _federation(folder: Path, keep: bool) -> Iterator[Sandbox]:
    """Starts the hospitals' federation; stops it at the end, unless it is to be kept and all went
    well."""
    console.print(f"[bold]1. A federation of four hospitals[/], in {_short(folder)}")
    split_by_hospital(folder / "data")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # four sites share this machine's cores
    sandbox = start_sandbox(
        folder / "sandbox", list(SITES.values()), folder / "data", [HERE],
        say=lambda text: console.print(f"   {text}"),
    )  # fmt: skip
    kept = False
    try:
        yield sandbox
        kept = keep
    finally:
        if not kept:
            with _undisturbed():
                console.print("\nstopping the server and the sites ...")
                killed = sandbox.stop()
            if killed:
                console.print(f"[yellow]had to be killed: {', '.join(killed)}[/]")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets a second Ctrl-C not leave processes behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _train(sandbox: Sandbox, rounds: int) -> tuple[Path, Mapping[str, object]]:
    """Runs the job as a user does; returns the model's file and what the sites found at the end."""
    kit = sandbox.kit_folder()
    job = ["prefect", "deployment", "run", "fedavg/default"]
    job += ["--param", "executor=heart", "--param", f"rounds={rounds}"]
    console.print("\n[bold]2. A job[/], started with a user's startup kit:")
    console.print(f"   prefect-federated connect --kit {_short(kit)} -- \\")
    console.print("       " + " ".join(job).replace("fedavg/default", "'fedavg/default'"))
    run = _submit(kit, job, sandbox.log(SERVER))
    console.print(f"   flow run {run}; while it runs: {sandbox.ui_url}/runs/flow-run/{run}\n")
    with (
        sandbox.connected() as environment,
        temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        _wait_for_job(client, run, Rounds(rounds), sandbox.log(SERVER))
        model = str(_artifact(client, run, "fedavg-model"))
        table = json.loads(str(_artifact(client, run, "fedavg-rounds")))
    evaluated = [row for row in table if row["kind"] == "evaluate"]
    path = re.search(r"\(file://(.+)\)", model)
    if not evaluated or path is None:
        raise DemoFailed(
            f"flow run {run} ended without a model or its evaluation; see {sandbox.log(SERVER)}."
        )
    return Path(path[1]), evaluated[-1]


def _submit(kit: Path, job: list[str], log: Path) -> UUID:
    """Starts the job with the two commands that a user types; returns its flow run."""
    own_commands = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    submitted = subprocess.run(
        ["prefect-federated", "connect", "--kit", str(kit), "--", *job],
        env={**os.environ, **own_commands},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = re.search(r"UUID: ([0-9a-f-]{36})", submitted.stdout)
    if submitted.returncode or run is None:
        raise DemoFailed(
            f"the job was not taken (exit status {submitted.returncode}); the server's log is "
            f"{log}:\n{submitted.stdout}"
        )
    return UUID(run[1])


def _wait_for_job(client: SyncPrefectClient, run: UUID, rounds: Rounds, log: Path) -> None:
    """Shows the rounds until the job and the sites' part in it have ended.

    Raises:
        DemoFailed: the job did not complete, or not in time.
    """
    deadline = time.monotonic() + JOB_S
    console.print(_row("round", "sites", "seconds", "sent", "received", "loss", "accuracy"))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=rounds.total)
        while True:
            state = client.read_flow_run(run).state
            for row in rounds.read(client, run):
                progress.console.print(row)
            progress.update(bar, completed=rounds.done, description=_stage(state, rounds))
            if state is not None and state.is_final() and _sites_have_ended(client):
                break
            if time.monotonic() > deadline:
                name = state.name if state else "unknown"
                raise DemoFailed(f"the job is still {name} after {JOB_S:g} s; see {log}.")
            time.sleep(0.3)
    for row in rounds.read(client, run):
        console.print(row)
    if not state.is_completed():
        raise DemoFailed(
            f"flow run {run} is {state.name}: {state.message or 'no reason given'}. The server's "
            f"log is {log}, the sites' logs are beside it."
        )


def _stage(state: State[object] | None, rounds: Rounds) -> str:
    if state is None or not state.is_running():
        return "the server's worker starts the job" if not rounds.joined else "the job ends"
    if not rounds.joined:
        return "the sites start their processes and join"
    return f"{rounds.done} of {rounds.total} rounds"


def _sites_have_ended(client: SyncPrefectClient) -> bool:
    runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[SITE_FLOW])))
    return all(run.state is not None and run.state.is_final() for run in runs)


def _artifact(client: SyncPrefectClient, run: UUID, key: str) -> object:
    """Returns the newest content of one of the job's artifacts; None if there is none."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])
        ),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    return found[0].data if found else None


def _check_model(folder: Path, model_file: Path, evaluated: Mapping[str, object]) -> float:
    """Returns the accuracy of the model in the file on all hospitals' test patients.

    Raises:
        DemoFailed: it is not the model that the sites evaluated.
    """
    hospitals = [heart.read_patients(folder / site / "heart.csv") for site in SITES.values()]
    reached = accuracy(read_model(model_file), heart.as_tensors(together(hospitals)))
    if evaluated["sites"] != f"{len(SITES)}/{len(SITES)}":
        console.print(f"[yellow]only {evaluated['sites']} sites evaluated the last model[/]")
    elif abs(reached - float(str(evaluated["accuracy"]))) > 1e-5:  # the sites' has 7 digits
        raise DemoFailed(
            f"the sites found an accuracy of {evaluated['accuracy']}, the model in {model_file} "
            f"has {reached:.7f}; they should be the same."
        )
    return reached


def _show_result(reached: float, compared: Baselines) -> None:
    """Shows the accuracies side by side."""
    table = Table(title="Right on the test patients of ...", title_justify="left")
    table.add_column("model")
    table.add_column("its own hospital", justify="right")
    table.add_column("all four", justify="right")
    for hospital, site in SITES.items():
        alone = compared.alone[site]
        table.add_row(f"{hospital} alone", f"{alone.own:.1%}", f"{alone.everywhere:.1%}")
    table.add_section()
    table.add_row("pooled: all patients in one place", "", f"{compared.pooled.everywhere:.1%}")
    table.add_row("[bold]federated: no patient left a hospital[/]", "", f"[bold]{reached:.1%}[/]")
    console.print(table)


def _show_where(sandbox: Sandbox, model_file: Path, keep: bool) -> None:
    kit = sandbox.kit_folder()
    console.print(f"\nModel:      {_short(model_file)}")
    console.print(f"Logs:       {_short(sandbox.log(SERVER).parent)}")
    if not keep:
        console.print("Prefect UI: `make demo KEEP=1` leaves it running to look at")
        return
    console.print(f"Prefect UI: {sandbox.ui_url}")
    console.print(
        "            The browser needs a user's certificate: import "
        f"{_short(kit / 'browser.p12')}\n"
        f"            with the password in {_short(kit / 'browser-password.txt')}, and trust\n"
        f"            {_short(kit / 'ca.crt')} for web sites."
    )
    console.print(f"Stop it:    {_stop_command(sandbox)}")


def _stop_command(sandbox: Sandbox) -> str:
    command = _short(Path(sys.executable).parent / "prefect-federated")
    return f"{command} sandbox stop --folder {_short(sandbox.folder)}"


def _short(path: Path) -> str:
    """Returns a path as it is typed from the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    cyclopts.run(demo)
