"""What a provisioning run found and did, for people and for the command line."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from prefect_federated.kits import Identity


class KitStatus(StrEnum):
    """What became of a participant's kit in a run."""

    MADE = "made"
    KEPT = "was there"
    NOT_IN_FILE = "not in the file"


@dataclass(frozen=True)
class KitReport:
    """One participant's kit after a run.

    Args:
        name: The participant's name, which is the folder's name.
        identity: Whom the kit is for; None if the folder holds no readable kit.
        folder: Where the kit is.
        status: Made now, there before, or there without standing in the file.
        expires: End of the certificate; None if it cannot be read.
        problems: What is wrong with a kit that was there, each with what to do.
    """

    name: str
    identity: Identity | None
    folder: Path
    status: KitStatus
    expires: datetime | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProvisionReport:
    """What a provisioning run found and did.

    Args:
        federation: The federation's name.
        workspace: The folder that holds `ca/` and `kits/`.
        ca_made: Whether this run made the CA.
        kits: All kits: those of the file in its order, then those no longer in it.
        ca_problems: What to know about the CA itself, such as that it expires soon.
    """

    federation: str
    workspace: Path
    ca_made: bool
    kits: tuple[KitReport, ...]
    ca_problems: tuple[str, ...] = ()

    @property
    def made(self) -> tuple[KitReport, ...]:
        """The kits that this run made."""
        return tuple(kit for kit in self.kits if kit.status is KitStatus.MADE)

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that a person should look at, the CA's first."""
        return (*self.ca_problems, *(text for kit in self.kits for text in kit.problems))

    def kit(self, name: str) -> KitReport:
        """Return the kit of `name`; a KeyError if there is none."""
        for kit in self.kits:
            if kit.name == name:
                return kit
        raise KeyError(name)
