"""Any other database that SQLAlchemy speaks to, and its driver: row by row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from urllib.parse import quote

import pyarrow
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.selectable import ExecutableReturnsRows as Statement

from prefect_federated.datasets.database_url import without_password
from prefect_federated.errors import DatasetFileError, DatasetUnreadable

CONNECT_S = 5
"""Seconds within which a server must accept the connection, where the driver lets one say so."""
_TIMEOUT = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pg8000": "timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pymssql": "login_timeout",
    "oracledb": "tcp_connect_timeout",
}
_SNAPSHOT: Mapping[str, Mapping[str, str | bool]] = {
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "mysql": {"isolation_level": "REPEATABLE READ"},
    "mariadb": {"isolation_level": "REPEATABLE READ"},
}


class AlchemySession:
    """A connection that only reads."""

    is_typed = False

    def __init__(self, connection: Connection, title: str, url: URL) -> None:
        self.dialect_name = connection.dialect.name
        self._connection = connection
        self._title = title
        self._url = url

    def schema(self, statement: Statement) -> pyarrow.Schema:
        """Returns the names of a statement's columns; their types are not known.

        Raises:
            DatasetUnreadable: the statement fails.
        """
        with self._told():
            names = list(self._connection.execute(statement).keys())
        return pyarrow.schema([(name, pyarrow.null()) for name in names])

    def rows(self, statement: Statement) -> list[tuple[object, ...]]:
        """Returns all rows of a statement that has few.

        Raises:
            DatasetUnreadable: the statement fails.
        """
        with self._told():
            return [tuple(row) for row in self._connection.execute(statement)]

    def batches(
        self, statement: Statement, rows: int, are_text: Sequence[bool] | None = None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yields a statement's rows in batches of so many.

        Raises:
            DatasetUnreadable: the statement fails.
        """
        streamed = self._connection.execution_options(stream_results=True, max_row_buffer=rows)
        with self._told():
            result = streamed.execute(statement)
            names = list(result.keys())
            while found := result.fetchmany(rows):
                yield pyarrow.RecordBatch.from_arrays(
                    [_array(values) for values in zip(*found, strict=True)], names
                )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise DatasetUnreadable(
                f"{self._title}: the query failed: {_said(error, self._url)}. Check `query` and "
                "`url`, and try the query with the database's own tools."
            ) from None


@contextmanager
def alchemy_session(url: URL, title: str) -> Iterator[AlchemySession]:
    """Connects by the URL's driver, or the one that SQLAlchemy takes by default.

    Raises:
        DatasetFileError: there is no such dialect, or its driver is not installed.
        DatasetUnreadable: the database is away, or refuses.
    """
    options: dict[str, object] = {}
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        file = f"file:{quote(str(url.database))}"
        url = url.set(database=file, query={"mode": "ro", "uri": "true"})
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            raise DatasetFileError(
                f"{title}: {url.drivername} is an asynchronous driver. Leave `+{dialect.driver}` "
                "out of `url`."
            )
        if dialect.driver in _TIMEOUT:
            options[_TIMEOUT[dialect.driver]] = CONNECT_S
        engine = create_engine(url, poolclass=NullPool, connect_args=options)
    except NoSuchModuleError:
        raise DatasetFileError(
            f"{title}: SQLAlchemy knows no dialect {url.drivername!r}. Check the spelling in "
            "`url`, or install the package that brings it."
        ) from None
    except ModuleNotFoundError as error:
        raise DatasetFileError(
            f"{title}: the driver {error.name} is not installed at this site. Install it, or name "
            "another in `url`, such as postgresql+psycopg://."
        ) from None
    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        raise DatasetUnreadable(
            f"{title} cannot be opened: {_said(error, url)}. Check `url`, the password, and that "
            "the database is up and can be reached from this site."
        ) from None
    with connection:
        connection = connection.execution_options(**_SNAPSHOT.get(connection.dialect.name, {}))
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # Python's driver begins none for a SELECT
        yield AlchemySession(connection, title, url)


def _array(values: Sequence[object]) -> pyarrow.Array:
    """Returns a column of a row's values; as text where they are of several types."""
    plain = [float(value) if isinstance(value, Decimal) else value for value in values]
    try:
        return pyarrow.array(plain)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        if all(value is None or isinstance(value, int | float) for value in plain):
            return pyarrow.array([None if v is None else float(str(v)) for v in plain])
        return pyarrow.array([None if value is None else str(value) for value in plain])


def _said(error: SQLAlchemyError, url: URL) -> str:
    """Returns what the database said, unless a row's value may be in it."""
    if not isinstance(error, DBAPIError):
        return type(error).__name__
    kind = type(error).__name__
    if kind not in ("OperationalError", "ProgrammingError", "InterfaceError"):
        return f"{kind} (the database's own log says more)"
    return without_password(str(error.orig).partition("\n")[0], url).removesuffix(".")
