"""`prefect-federated simulate ...`"""

import json
import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.table import Table

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue


def simulate_command(
    flow: Annotated[str, cyclopts.Parameter(help="A built-in job, or your own: module:flow.")],
    *,
    sites: Annotated[
        str | None,
        cyclopts.Parameter(
            help="Number of virtual sites, or their names with commas between; the sub-folders of "
            "--data if left out."
        ),
    ] = None,
    threads: Annotated[
        int | None, cyclopts.Parameter(help="Site tasks that run at the same time.")
    ] = None,
    data: Annotated[
        Path | None, cyclopts.Parameter(help="Folder with one sub-folder of data a site.")
    ] = None,
    code: Annotated[
        tuple[Path, ...],
        cyclopts.Parameter(help="Folder to import executors from, beside what is installed."),
    ] = (),
    output: Annotated[
        Path | None, cyclopts.Parameter(help="Folder for the model; a temporary one if left out.")
    ] = None,
    param: Annotated[
        tuple[str, ...],
        cyclopts.Parameter(help="A parameter of the flow, name=value; JSON where it is JSON."),
    ] = (),
) -> None:
    """Run a job on virtual sites in this process: what runs here runs in a federation unchanged."""
    from prefect_federated.agents.simulator import simulate

    names = None if sites is None else int(sites) if sites.isdigit() else sites.split(",")
    result = simulate(
        flow,
        sites=names,
        threads=threads,
        data=data,
        code=code,
        output=output,
        parameters=dict(_parameter(text) for text in param),
    )
    console = Console(file=sys.stdout)
    table = Table(title=f"{flow}: one row a call to the sites")
    columns = list(dict.fromkeys(name for row in result.metrics for name in row))
    for name in columns:
        table.add_column(name, justify="left" if name in ("kind", "failures") else "right")
    for row in result.metrics:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    console.print(table)
    console.print(f"Model: {result.path}", soft_wrap=True)


def _parameter(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--param {text!r}: write name=value, such as rounds=5.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
