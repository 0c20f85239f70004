"""`prefect-federated simulate ...`"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from rich.console import Console
from rich.table import Table

from prefect_federated.cli.progress import showing_progress
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue, human_bytes

if TYPE_CHECKING:
    from prefect_federated.tasks.statistics_result import StatisticsRef


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
        int | None, cyclopts.Parameter(help="Site tasks that run at the same time on threads.")
    ] = None,
    processes: Annotated[
        int | None,
        cyclopts.Parameter(help="Worker processes that run the site tasks, instead of threads."),
    ] = None,
    runner: Annotated[
        Literal["threads", "processes", "dask"] | None,
        cyclopts.Parameter(
            help="Where site tasks run: threads of this process, worker processes, or a Dask "
            "cluster (needs prefect-federated[dask]), with a Prefect task run a batch of sites."
        ),
    ] = None,
    dask_address: Annotated[
        str | None,
        cyclopts.Parameter(
            help="A Dask scheduler, tcp://host:port, whose workers see the same --data and "
            "--output; a cluster of --processes workers on this machine if left out."
        ),
    ] = None,
    data: Annotated[
        Path | None, cyclopts.Parameter(help="Folder with one sub-folder of data a site.")
    ] = None,
    code: Annotated[
        tuple[Path, ...],
        cyclopts.Parameter(help="Folder to import executors from, beside what is installed."),
    ] = (),
    output: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="Folder for the model, or for statistics and their report, which are compared "
            "with the last in the same folder; a temporary one if left out."
        ),
    ] = None,
    param: Annotated[
        tuple[str, ...],
        cyclopts.Parameter(help="A parameter of the flow, name=value; JSON where it is JSON."),
    ] = (),
    tensorboard: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="Folder for TensorBoard's event files; `tensorboard --logdir FOLDER` shows the "
            "sites side by side (needs prefect-federated[tensorboard])."
        ),
    ] = None,
) -> None:
    """Run a job on virtual sites: what runs here runs in a federation unchanged."""
    from prefect_federated.agents.early_server import start_early

    start_early()  # it imports at the same time as what follows here
    from prefect_federated.agents.simulator import simulate
    from prefect_federated.tasks.statistics_result import StatisticsRef
    from prefect_federated.tasks.tabular import FittedRef

    logging.getLogger("prefect_federated.site").setLevel(
        logging.WARNING
    )  # a line a round is enough
    names = None if sites is None else int(sites) if sites.isdigit() else sites.split(",")
    with showing_progress() as progress:
        result = simulate(
            flow,
            sites=names,
            threads=threads,
            processes=processes,
            runner=runner,
            dask_address=dask_address,
            data=data,
            code=code,
            output=output,
            parameters=dict(_parameter(text) for text in param),
            watcher=None if progress is None else progress.watcher,
            listener=None if progress is None else progress.told,
            tensorboard=tensorboard,
        )
    console = Console(file=sys.stdout)
    if isinstance(result.returned, StatisticsRef):
        _show_statistics(console, result.returned)
        return
    if result.metrics:
        console.print(_table(result.metrics))
    if isinstance(result.returned, FittedRef):
        _show_comparison(console, result.path)
    console.print(f"Model: {result.path}", soft_wrap=True)
    best = getattr(result.returned, "best_path", None)
    if best is not None:
        round = getattr(result.returned, "best_round", None)
        console.print(f"Best model, after round {round}: {best}", soft_wrap=True)


def _show_comparison(console: Console, folder: Path) -> None:
    """Shows the metrics of the joint model and of each site's own, as its card has them."""
    from prefect_federated.tabular.card import ModelCard
    from prefect_federated.tabular.saved import CARD

    card = ModelCard.model_validate_json((folder / CARD).read_bytes())
    table = Table(title="On each site's own test rows")
    for name in ("site", "trained on", "tested on", "metric", "joint model", "its own alone"):
        table.add_column(name, overflow="fold")
    for site in card.sites:
        rows = f"{site.train_rows:,}", f"{site.test_rows:,}"
        for place, metric in enumerate(site.measured):
            named = ("", "", "") if place else (site.name, *rows)
            table.add_row(*named, metric, *site.pair(metric))
    console.print(table)


def _show_statistics(console: Console, reference: "StatisticsRef") -> None:
    from prefect_federated.statistics.terminal import overview
    from prefect_federated.tasks.statistics_lookup import read_statistics

    console.print(overview(read_statistics(Path(reference.path))))
    console.print(f"Report: {reference.report}", soft_wrap=True, markup=False)
    console.print(f"JSON: {reference.path}", soft_wrap=True, markup=False)


def _table(rows: Sequence[Mapping[str, JsonValue]]) -> Table:
    """Returns the job's table as it fits a terminal: a row a call to the sites."""
    from prefect_federated.tasks.round_report import COLUMNS

    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
    table = Table()
    for name in ("round", "sites", "s", "sent", "received", *metrics):
        table.add_column(name, overflow="fold")  # a cut number would be another number
    if any(row["failures"] for row in rows):
        table.add_column("failures", overflow="fold")
    for row in rows:
        sent, received = (float(str(row[name])) for name in ("bytes_sent", "bytes_received"))
        table.add_row(
            str(row["round"] or row["kind"]),
            str(row["sites"]),
            f"{row['seconds']:.2f}",
            human_bytes(sent),
            human_bytes(received),
            *(f"{row[name]:.4f}" if name in row else "" for name in metrics),
            *([str(row["failures"])] if len(table.columns) > 5 + len(metrics) else []),
        )
    return table


def _parameter(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--param {text!r}: write name=value, such as rounds=5.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
