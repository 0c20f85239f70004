"""The command `prefect-federated`. Each command's module is imported when it is used."""

import logging
import sys

import cyclopts
from rich.console import Console
from rich.text import Text

from prefect_federated.errors import FederatedError

app = cyclopts.App(
    name="prefect-federated",
    help="Federated learning whose engine is Prefect 3.",
    version="0.1.0",
)
app.command(
    "prefect_federated.cli.provision:provision_command",
    name="provision",
    help="Make a CA, certificates and startup kits from a federation file.",
)
app.command(
    "prefect_federated.cli.server:app",
    name="server",
    help="Run the federation's server.",
)
app.command(
    "prefect_federated.cli.site:app",
    name="site",
    help="Run a site of the federation.",
)
app.command(
    "prefect_federated.cli.connect:connect",
    name="connect",
    help="Use a federation with the ordinary prefect command, Python and notebooks.",
)
app.command(
    "prefect_federated.cli.sandbox:app",
    name="sandbox",
    help="Run a throwaway federation on this machine.",
)
app.command(
    "prefect_federated.cli.simulate:simulate_command",
    name="simulate",
    help="Run a job on virtual sites in one process.",
)
app.command(
    "prefect_federated.cli.statistics:app",
    name="statistics",
    help="Show what federated statistics came to.",
)


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
        message = Text.assemble(("Error: ", "bold red"), str(error))
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)
