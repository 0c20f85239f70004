"""Where a database is, and the password for it, which no error and no log may show."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from prefect_federated.errors import DatasetFileError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Password:
    """Where a password is kept: an environment variable, a file whose only line it is, or neither.

    Args:
        env: The variable's name.
        file: The file's path, relative to the folder of `datasets.yaml`.
    """

    env: str | None = None
    file: str | None = None

    def read(self, folder: Path, where: str) -> str | None:
        """Returns the password; None if there is none.

        Raises:
            DatasetFileError: the variable is not set, or the file cannot be read.
        """
        if self.env is not None:
            return _variable(self.env, where)
        if self.file is None:
            return None
        try:
            return (folder / self.file).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetFileError(
                f"{where}: the password's file {self.file} cannot be read "
                f"({getattr(error, 'strerror', None) or 'not UTF-8'}). Check `password_from`, and "
                "that the site's user may read the file."
            ) from None


@dataclass(frozen=True)
class DatabaseUrl:
    """A SQLAlchemy URL as the file has it, resolved when the database is opened.

    Args:
        text: The URL, in which `${NAME}` stands for an environment variable.
        password: Where the password is kept, if not in the URL.
        folder: The folder of `datasets.yaml`, to which paths are relative.
        where: `file:line` of the dataset.
    """

    text: str = field(repr=False)
    password: Password
    folder: Path
    where: str

    def resolve(self) -> URL:
        """Returns the URL with all its parts; a SQLite file has its whole path.

        Raises:
            DatasetFileError: it is no URL, a variable is not set, or there is no password's file.
        """
        filled = _VARIABLE.sub(lambda found: _variable(found[1], self.where), self.text)
        try:
            url = make_url(filled)
        except (ArgumentError, ValueError):  # the port, for one
            raise DatasetFileError(
                f"{self.where}: `url` is no database URL. Write dialect://user@host:port/database, "
                "such as postgresql://reader@db.example.org/clinic, or sqlite:///clinic.db; a "
                "character like @, : or / in a password is written as %40, %3A or %2F, or comes "
                "from `password_from`."
            ) from None
        password = self.password.read(self.folder, self.where)
        if password is not None:
            url = url.set(password=password)
        if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
            url = url.set(database=str(self.folder / url.database))
        return url


def name_of(url: URL) -> str:
    """Returns how errors name a database, without user and password."""
    dialect = url.get_backend_name()
    called = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MySQL"}.get(
        dialect, dialect
    )
    if dialect == "sqlite":
        return f"SQLite file {Path(url.database or '').name}"
    host = url.host or url.query.get("host") or "this machine"
    at = f"{host}:{url.port}" if url.port else f"{host}"
    return f"{called} database {url.database or ''} at {at}"


def without_password(said: str, url: URL) -> str:
    """Returns what a driver said, on one line, without the URL's password."""
    line = " ".join(said.split())
    for secret in (url.render_as_string(hide_password=False), str(url.password or "")):
        if secret:
            line = line.replace(secret, "***")
    return line


def _variable(name: str, where: str) -> str:
    if name not in os.environ:
        raise DatasetFileError(
            f"{where}: the environment variable {name} is not set for the site's process. Set it "
            "before the site is started."
        )
    return os.environ[name]
