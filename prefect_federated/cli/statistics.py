"""`prefect-federated statistics ...`"""

import re
import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

app = cyclopts.App(name="statistics", help="Results of federated statistics.")

_PICTURE = re.compile(r"!\[([^\]]*)\]\(data:[^)]*\)")


@app.command
def show(
    run: Annotated[
        str,
        cyclopts.Parameter(
            help="A flow run's id, the beginning of it, or its name; or the path of a "
            "statistics.json."
        ),
    ],
    *,
    feature: Annotated[
        str | None, cyclopts.Parameter(help="One column, site by site, instead of all.")
    ] = None,
    html: Annotated[
        Path | None, cyclopts.Parameter(help="Write the report into this file, too.")
    ] = None,
    json: Annotated[
        Path | None, cyclopts.Parameter(help="Write the result as JSON into this file, too.")
    ] = None,
) -> None:
    """Show what a statistics run came to.

    With a federation: prefect-federated connect --kit KIT -- prefect-federated statistics show RUN
    """
    from prefect_federated.errors import StatisticsNotFound
    from prefect_federated.statistics.terminal import one_column, overview
    from prefect_federated.tasks.statistics_lookup import (
        OnlySummary,
        find_statistics,
        read_statistics,
    )

    console = Console(file=sys.stdout)
    is_file = Path(run).exists() or "/" in run or run.endswith(".json")
    found = read_statistics(Path(run)) if is_file else find_statistics(run)
    if isinstance(found, OnlySummary):
        if feature or html or json:
            raise StatisticsNotFound(found.reason)
        console.print(Markdown(_PICTURE.sub(r"*\1*: in the report", found.markdown)))
        Console(stderr=True, soft_wrap=True).print(
            Text(f"This is the summary only: {found.reason}")
        )
        return
    console.print(overview(found) if feature is None else one_column(found, feature))
    if html is not None:
        from prefect_federated.statistics.report import report_html

        _write(html, report_html(found))
        console.print(f"Report: {html}", soft_wrap=True, markup=False)
    if json is not None:
        _write(json, found.model_dump_json(indent=1))
        console.print(f"JSON: {json}", soft_wrap=True, markup=False)


def _write(file: Path, content: str) -> None:
    from prefect_federated.errors import ConfigurationError

    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}. Give a file in a folder that is there."
        ) from error
