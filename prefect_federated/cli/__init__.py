"""The command `prefect-federated`. Each command's module is imported when it is used."""

import logging
import sys

import cyclopts
from rich.console import Console

from prefect_federated.errors import FederatedError

app = cyclopts.App(
    name="prefect-federated",
    help="Federated learning whose engine is Prefect 3.",
    version="0.1.0",
)
app.command("prefect_federated.cli.provision:provision_command", name="provision")
app.command("prefect_federated.cli.server:app", name="server")
app.command("prefect_federated.cli.site:app", name="site")
app.command("prefect_federated.cli.connect:connect", name="connect")
app.command("prefect_federated.cli.sandbox:app", name="sandbox")
app.command("prefect_federated.cli.simulate:simulate_command", name="simulate")


def main() -> None:
    """Runs the command line; an error of ours ends it with one message and its exit status."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s | %(levelname)-7s | %(message)s",
    )
    logging.getLogger("prefect_federated").setLevel(logging.INFO)
    try:
        result = app()
    except FederatedError as error:
        Console(stderr=True, soft_wrap=True).print(f"[red bold]Error:[/] {error}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)
