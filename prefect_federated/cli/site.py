"""`prefect-federated site ...`"""

import asyncio
from pathlib import Path
from typing import Annotated

import cyclopts

app = cyclopts.App(name="site", help="A site of the federation.")


@app.command
def start(
    *,
    kit: Annotated[Path, cyclopts.Parameter(help="The site's startup kit.")],
    data: Annotated[Path | None, cyclopts.Parameter(help="Folder of the site's own data.")] = None,
    state: Annotated[
        Path | None, cyclopts.Parameter(help="Folder for what the site keeps of jobs.")
    ] = None,
    code: Annotated[
        tuple[Path, ...],
        cyclopts.Parameter(help="Folder to import executors from, beside what is installed."),
    ] = (),
    label: Annotated[
        tuple[str, ...],
        cyclopts.Parameter(
            help="What the site says of itself, as name=value; jobs can choose sites by it. May be "
            "given several times."
        ),
    ] = (),
) -> None:
    """Start a site: it connects outwards only, and waits for the server if that is not there yet.

    Stop it with SIGTERM or Ctrl-C.
    """
    from prefect_federated.agents.site import serve

    asyncio.run(serve(kit, data, state, code, label))
