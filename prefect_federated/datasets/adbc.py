"""SQLite and PostgreSQL, read as Arrow columns through ADBC: much faster than row by row."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.sql.selectable import ExecutableReturnsRows as Statement

from prefect_federated.datasets.database_url import name_of, without_password
from prefect_federated.datasets.texts import mixed_types
from prefect_federated.errors import DatasetUnreadable, MixedTypes

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection

_log = logging.getLogger("prefect_federated.site")

CONNECT_S = 5
"""Seconds within which a server must accept the connection."""
BUSY_S = 5.0
"""Seconds for which a SQLite file may be locked by a program that writes."""
LIBPQ = {  # a server that is gone in the middle of a query is noticed within about 25 s
    "connect_timeout": str(CONNECT_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
# SQLSTATE classes whose messages speak of the query, the server or the user, never of a value
_TELLING = ("08", "0A", "25", "28", "3D", "3F", "42", "53", "54", "55", "57", "58")
# errors in the middle of the rows come without SQLSTATE
_PLAIN = re.compile(
    r"Failed to connect|closed the connection|terminating connection|canceling statement"
    r"|out of memory|No space left|could not (send|receive)|division by zero"
    r"|in a read-only transaction"
)
# what ADBC says around the database's own words
_BEFORE = re.compile(
    r"^([A-Z_]+: )?(\[\w+\] )?(Failed to (prepare|step) query: |Execution error \[\w+\]: )?"
    r"(ERROR:\s+)?"
)
_AFTER = re.compile(r"\n(?:query:|LINE \d+:|\nQuery was|\tIs the server)")
_MISMATCH = re.compile(r"Type mismatch in column (\d+): expected (\w+)")


class AdbcSession:
    """A connection that only reads, in one transaction: all that it reads is of one moment."""

    def __init__(self, connection: "Connection", dialect: Dialect, title: str, url: URL) -> None:
        self.is_typed = dialect.name == "postgresql"
        self.dialect_name = dialect.name
        self._connection = connection
        self._dialect = dialect
        self._title = title
        self._url = url

    def schema(self, statement: Statement) -> pyarrow.Schema:
        """Returns the names and types of a statement's columns, without reading rows.

        Raises:
            DatasetUnreadable: the statement fails.
        """
        with self._told(), self._connection.cursor() as cursor:
            if self.is_typed:
                return cursor.adbc_execute_schema(self._sql(statement))
            cursor.execute(self._sql(statement))
            return cursor.fetch_record_batch().schema

    def rows(self, statement: Statement) -> list[tuple[object, ...]]:
        """Returns all rows of a statement that has few.

        Raises:
            DatasetUnreadable: the statement fails.
        """
        with self._told(), self._connection.cursor() as cursor:
            cursor.execute(self._sql(statement))
            table = cursor.fetch_arrow_table()
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def batches(
        self, statement: Statement, rows: int, are_text: Sequence[bool] | None = None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yields a statement's rows in batches of about so many.

        Args:
            statement: What to select.
            rows: Rows of a batch, for SQLite; PostgreSQL sends about 16 MB at a time.
            are_text: Whether each column is text, else numbers; for SQLite, whose columns have no
                types. Without it the first `rows` rows decide.

        Raises:
            DatasetUnreadable: the statement fails.
            MixedTypes: a value is text where numbers are expected.
        """
        sql = self._sql(statement)
        skipped = 0
        if are_text is not None and not self.is_typed:
            # ADBC goes by the first batch; a first row of our own tells it the types
            example = ", ".join("''" if is_text else "0.5" for is_text in are_text)
            sql, skipped = f"SELECT {example} UNION ALL {sql}", 1
        options = {} if self.is_typed else {"adbc.sqlite.query.batch_rows": rows}
        names = [each.name for each in statement.exported_columns]
        done = 0
        with self._connection.cursor(adbc_stmt_kwargs=options) as cursor:
            try:
                with self._told():
                    cursor.execute(sql)
                    for batch in cursor.fetch_record_batch():
                        yield batch.slice(skipped).rename_columns(names)
                        done += batch.num_rows - skipped
                        skipped = 0
            except _Mismatch as mismatch:
                name = names[mismatch.position]
                row = f"a row after row {done:,}" if done else f"one of the first {rows:,} rows"
                raise MixedTypes(mixed_types(name, "numeric", "text", row), name) from None

    def _sql(self, statement: Statement) -> str:
        compiled = statement.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True})
        return str(compiled)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import adbc_driver_manager

        try:
            yield
        except (adbc_driver_manager.Error, OSError, pyarrow.ArrowException) as error:
            mismatch = _MISMATCH.search(str(error))
            if mismatch:
                raise _Mismatch(int(mismatch[1])) from None
            raise DatasetUnreadable(
                f"{self._title}: the query failed: {_said(error, self._url)}. Check `query` and "
                "`url`, and try the query with the database's own tools."
            ) from None


class _Mismatch(Exception):
    def __init__(self, position: int) -> None:
        self.position = position


def _said(error: Exception, url: URL) -> str:
    """Returns what the database said, unless a row's value may be in it."""
    state = getattr(error, "sqlstate", None)
    is_plain = state.startswith(_TELLING) if state else _PLAIN.search(str(error))
    if url.get_backend_name() == "postgresql" and not is_plain:
        _log.warning("%s: %s", name_of(url), error)  # stays at the site
        code = f"SQLSTATE {state}; " if state else ""
        return f"{code}the site's log has what the database said"
    said = _BEFORE.sub("", _AFTER.split(str(error))[0])
    return without_password(said, url).removesuffix(".")


@contextmanager
def _connected(connect: Callable[[], "Connection"], title: str, url: URL) -> Iterator["Connection"]:
    import adbc_driver_manager

    try:
        connection = connect()
    except (adbc_driver_manager.Error, OSError) as error:
        raise DatasetUnreadable(
            f"{title} cannot be opened: {_said(error, url)}. Check `url`, the password, and that "
            "the database is up and can be reached from this site."
        ) from None
    with closing(connection):
        yield connection


@contextmanager
def sqlite_session(url: URL, title: str) -> Iterator[AdbcSession]:
    """Opens a SQLite file for reading only.

    Raises:
        DatasetUnreadable: there is no such file, or it is no database.
        ModuleNotFoundError: ADBC is not installed.
    """
    from adbc_driver_sqlite.dbapi import connect

    path = Path(url.database or "")
    if not path.is_file():
        raise DatasetUnreadable(f"{title}: there is no such file. Check `url`.")
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    with _connected(lambda: connect(uri), title, url) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
        yield AdbcSession(connection, SQLiteDialect(paramstyle="named"), title, url)


@contextmanager
def postgresql_session(url: URL, title: str) -> Iterator[AdbcSession]:
    """Opens a PostgreSQL database in one transaction that only reads.

    Raises:
        DatasetUnreadable: the server is away, or refuses.
        ModuleNotFoundError: ADBC is not installed.
    """
    from adbc_driver_postgresql.dbapi import connect

    given = {**LIBPQ, **url.query}
    uri = url.set(drivername="postgresql", query=given).render_as_string(hide_password=False)
    with _connected(lambda: connect(uri), title, url) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        dialect = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
        yield AdbcSession(connection, dialect, title, url)
