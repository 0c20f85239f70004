"""`prefect-federated provision`: from a federation file to startup kits, on the terminal."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import Role
from prefect_federated.provisioning import (
    KitReport,
    KitStatus,
    Plan,
    ProvisionReport,
    plan_provisioning,
    provision,
)

PASSPHRASE_VARIABLE = "PREFECT_FEDERATED_CA_PASSPHRASE"  # noqa: S105 - a variable's name


def provision_command(
    file: Annotated[Path, Parameter(help="The federation file, such as federation.yaml.")],
    /,
    *,
    workspace: Annotated[
        Path, Parameter(help="The administrator's folder; gets ca/ and kits/.")
    ] = Path(),
    passphrase_file: Annotated[
        Path | None, Parameter(help="A file whose first line is the passphrase of the CA's key.")
    ] = None,
) -> None:
    """Make the CA and a startup kit for each participant of a federation.

    What exists already is left as it is, so run it again after adding a site or a user. The
    passphrase of the CA's private key is asked for, unless --passphrase-file or the environment
    variable PREFECT_FEDERATED_CA_PASSPHRASE gives it, and only if something is to be signed.
    """
    plan = plan_provisioning(file, workspace)
    passphrase = _passphrase(plan, passphrase_file) if plan.needs_passphrase else None
    print_report(provision(file, workspace, passphrase=passphrase), Console())


def print_report(report: ProvisionReport, console: Console) -> None:
    """Print what was made, what was there, and what is to be done with it."""
    table = Table(title=f"Federation {report.federation}", title_justify="left")
    for heading in ("Participant", "Role", "Organisation", "Kit", "Valid until"):
        table.add_column(heading, no_wrap=heading != "Organisation")
    for kit in report.kits:
        table.add_row(*(escape(text) for text in _row(kit)))
    console.print(table)
    _print(console, f"The kits, a folder for each participant: {report.workspace / 'kits'}")
    if report.ca_made:
        _print(
            console,
            f"The CA was made: {report.workspace / 'ca'}. Keep ca.key off-line (say, on a USB "
            "stick in a safe) and bring it back only to make new kits; without it and its "
            "passphrase nobody can be added.",
        )
    if report.made:
        _print_how_to_give(console, report.made)
    else:
        _print(console, "Nothing was missing, nothing was changed.")
    for problem in report.problems:
        console.print("[yellow]Note:[/]", end=" ")
        _print(console, problem)


def _print_how_to_give(console: Console, made: tuple[KitReport, ...]) -> None:
    roles = {kit.identity.role for kit in made if kit.identity is not None}
    console.print("\nGive each new kit's whole folder to its participant:")
    if Role.SERVER in roles:
        _give(console, "a server's kit to whoever runs that server", Role.SERVER)
    if Role.SITE in roles:
        _give(console, "a site's kit to whoever runs the site at that organisation", Role.SITE)
    if user_roles := [role for role in roles if role.is_user]:
        _give(console, "a user's kit to that person and nobody else", user_roles[0])
    _print(
        console,
        "A kit holds a private key: use scp or an encrypted medium, never mail or chat. Then "
        "delete participant.key and, for users, browser.p12 and browser-password.txt here.",
    )


def _give(console: Console, what: str, role: Role) -> None:
    _print(console, f"  - {what}, used with `{role.start_command} --kit DIR`")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _row(kit: KitReport) -> tuple[str, ...]:
    role, organisation = "", ""
    if kit.identity is not None:
        role, organisation = kit.identity.role.value, kit.identity.organisation
    status = kit.status.value
    if kit.problems and kit.status is KitStatus.KEPT:
        status += " (!)"
    expires = f"{kit.expires:%Y-%m-%d}" if kit.expires else "unknown"
    return kit.name, role, organisation, status, expires


def _passphrase(plan: Plan, file: Path | None) -> bytes:
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{file}: the passphrase cannot be read ({error.strerror}). Give a file whose "
                "first line is the passphrase."
            ) from error
        first_line = content.split(b"\n", 1)[0].rstrip(b"\r")
        if not first_line:
            raise ConfigurationError(
                f"{file}: the first line is empty. Write the passphrase of the CA's key there."
            )
        return first_line
    if from_environment := os.environ.get(PASSPHRASE_VARIABLE):
        return from_environment.encode()
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "the CA's private key is needed, and there is no terminal to ask for its passphrase. "
            f"Give --passphrase-file FILE, or set {PASSPHRASE_VARIABLE}."
        )
    if not plan.makes_ca:
        return getpass.getpass("Passphrase of the CA's private key: ").encode()
    first = getpass.getpass("Passphrase for the new CA's private key: ")
    if first != getpass.getpass("The same again: "):
        raise ConfigurationError("the two passphrases differ; nothing was made. Run again.")
    return first.encode()
