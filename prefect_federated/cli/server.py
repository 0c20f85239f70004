"""`prefect-federated server ...`"""

import asyncio
from pathlib import Path
from typing import Annotated

import cyclopts

app = cyclopts.App(name="server", help="The federation's server.")


@app.command
def start(
    *,
    kit: Annotated[Path, cyclopts.Parameter(help="The server's startup kit.")],
    state: Annotated[
        Path | None,
        cyclopts.Parameter(help="Folder for the database, results and snapshots."),
    ] = None,
    listen: Annotated[
        str | None, cyclopts.Parameter(help="Address of the one open port, host:port.")
    ] = None,
    tensorboard: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="Folder for TensorBoard's event files of all jobs; `tensorboard --logdir FOLDER` "
            "shows them (needs prefect-federated[tensorboard])."
        ),
    ] = None,
) -> None:
    """Start the server: one open port, Prefect's API and UI under mutual TLS, and the jobs' worker.

    The database is SQLite in the state folder; set PREFECT_SERVER_DATABASE_CONNECTION_URL for
    PostgreSQL. Set MLFLOW_TRACKING_URI for metrics in MLflow. Stop it with SIGTERM or Ctrl-C.
    """
    from prefect_federated.agents.server import serve

    asyncio.run(serve(kit, state, listen, tensorboard))
