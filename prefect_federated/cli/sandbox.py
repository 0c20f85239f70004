"""`prefect-federated sandbox ...`"""

from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.table import Table

app = cyclopts.App(name="sandbox", help="A throwaway federation on this machine.")
Folder = Annotated[Path, cyclopts.Parameter(help="Folder that holds all of the sandbox.")]


@app.command
def start(
    *,
    sites: Annotated[
        str,
        cyclopts.Parameter(help="Number of sites, or their names with commas between."),
    ] = "4",
    folder: Folder = Path("sandbox"),
    data: Annotated[
        Path | None, cyclopts.Parameter(help="Folder with one sub-folder of data a site.")
    ] = None,
    code: Annotated[
        tuple[Path, ...],
        cyclopts.Parameter(help="Folder to import executors from, beside what is installed."),
    ] = (),
    tensorboard: Annotated[
        bool,
        cyclopts.Parameter(
            help="Write the jobs' metrics for TensorBoard, into `tensorboard` in --folder "
            "(needs prefect-federated[tensorboard])."
        ),
    ] = False,
) -> None:
    """Provision and start a server and sites: real processes, mutual TLS, loopback only."""
    from prefect_federated.agents.sandbox import start_sandbox

    console = Console(soft_wrap=True)
    names = (
        [f"site-{number}" for number in range(1, int(sites) + 1)]
        if sites.isdigit()
        else sites.split(",")
    )
    sandbox = start_sandbox(folder, names, data, code, console.print, tensorboard)
    console.print(f"\nready: {', '.join(names)}")
    kit = sandbox.kit_folder()
    console.print(
        f"\nRun a job:  prefect-federated connect --kit {kit} -- "
        "prefect deployment run 'fedavg/default' --param executor=..."
    )
    console.print(
        f"Prefect UI: {sandbox.ui_url}  (import {kit / 'browser.p12'} into the browser first; its "
        f"password is in {kit / 'browser-password.txt'})"
    )
    if tensorboard:
        console.print(f"TensorBoard: tensorboard --logdir {sandbox.tensorboard}")
    console.print(f"Stop it:    prefect-federated sandbox stop --folder {folder}")


@app.command
def status(*, folder: Folder = Path("sandbox")) -> int:
    """Show what runs; exit status 1 if something that was started does not."""
    from prefect_federated.agents.sandbox import open_sandbox

    sandbox = open_sandbox(folder)
    table = Table("process", "pid", "state", "log")
    dead = 0
    for process in sandbox.processes:
        runs = process.find() is not None
        dead += not runs
        table.add_row(
            process.name,
            str(process.pid),
            "running" if runs else "ended",
            str(sandbox.log(process.name)),
        )
    console = Console(soft_wrap=True)
    if not sandbox.processes:
        console.print(f"the sandbox in {folder} is stopped")
        return 1
    console.print(table)
    return 1 if dead else 0


@app.command
def stop(*, folder: Folder = Path("sandbox")) -> None:
    """End what `start` started, and nothing else."""
    from prefect_federated.agents.sandbox import open_sandbox

    killed = open_sandbox(folder).stop()
    Console().print(f"killed: {', '.join(killed)}" if killed else "stopped")
