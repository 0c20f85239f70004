"""A federation file and what was provisioned from it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_federated.provisioning import ProvisionReport, provision

PASSPHRASE = b"correct horse battery"
FEDERATION = """\
name: heart
servers:
  - {name: server-1, address: "127.0.0.1:8443", organisation: University}
sites:
  - {name: site-1, organisation: City Hospital}
users:
  - {name: alice, organisation: University, role: project_admin}
"""


@dataclass
class Administrator:
    """A federation file and a workspace, as the person has them who provisions."""

    file: Path
    workspace: Path

    def write(self, text: str) -> None:
        """Replace the federation file."""
        self.file.write_text(text)

    def edit(self, old: str, new: str) -> None:
        """Change one thing in the federation file."""
        text = self.file.read_text()
        assert text.count(old) == 1
        self.file.write_text(text.replace(old, new))

    def provision(self, passphrase: bytes | None = PASSPHRASE) -> ProvisionReport:
        """Run the provisioning."""
        return provision(self.file, self.workspace, passphrase=passphrase)

    def kit(self, name: str) -> Path:
        """Return a participant's kit folder."""
        return self.workspace / "kits" / name

    def contents(self) -> dict[str, tuple[bytes, int, int]]:
        """Return each file of the workspace: content, mode and time of the last change."""
        return {
            str(path.relative_to(self.workspace)): (
                path.read_bytes(),
                path.stat().st_mode,
                path.stat().st_mtime_ns,
            )
            for path in sorted(self.workspace.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def administrator(tmp_path: Path) -> Administrator:
    """Return an administrator with a federation file who has not provisioned yet."""
    file = tmp_path / "federation.yaml"
    file.write_text(FEDERATION)
    return Administrator(file, tmp_path / "workspace")
