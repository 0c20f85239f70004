"""A database as a source: what its columns hold, the rows in batches, and what it sums up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow
from sqlalchemy.engine import URL
from sqlalchemy.sql.selectable import ExecutableReturnsRows as Statement

from prefect_federated.datasets.cells import as_text as as_names
from prefect_federated.datasets.cells import is_text, kind_of, unusable
from prefect_federated.datasets.database_url import DatabaseUrl, name_of
from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.pushdown import has_infinite, read_aggregates
from prefect_federated.datasets.sources import Aggregate, Part
from prefect_federated.datasets.statements import (
    POSTGRESQL_NUMBERS,
    Expression,
    Query,
    as_double,
    as_epoch,
    as_it_is,
    as_text,
    sqlite_total,
    total,
)
from prefect_federated.datasets.texts import Texts
from prefect_federated.errors import DatasetFileError

LOOKED_AT = 10_000
"""Rows that decide what the columns of a database without types hold."""
_TYPE_NAMES = (b"POSTGRESQL:type", b"ADBC:postgresql:typname")  # ADBC's, since 1.12 and before


class Session(Protocol):
    """A connection to a database that only reads."""

    dialect_name: str
    is_typed: bool
    """Whether columns have types, which `schema` tells."""

    def schema(self, statement: Statement) -> pyarrow.Schema:
        """Returns the names and types of a statement's columns."""
        ...

    def rows(self, statement: Statement) -> list[tuple[object, ...]]:
        """Returns all rows of a statement that has few."""
        ...

    def batches(
        self, statement: Statement, rows: int, are_text: Sequence[bool] | None = None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yields a statement's rows in batches of about so many."""
        ...


class Opening(Protocol):
    """What connects to a database."""

    def __call__(self, url: URL, title: str) -> AbstractContextManager[Session]:
        """Opens the database that errors name as `title`."""
        ...


@dataclass(frozen=True)
class DatabaseSource:
    """A query to a database.

    Args:
        url: Where the database is.
        query: A `SELECT`.
    """

    url: DatabaseUrl
    query: str = field(repr=False)

    @property
    def title(self) -> str:
        """How errors name it."""
        return name_of(self.url.resolve())

    @contextmanager
    def open(self) -> Iterator["DatabaseReader"]:
        """Connects.

        Raises:
            DatasetFileError: the URL is wrong, or its password is not there.
            DatasetUnreadable: the database is away, or its driver is not installed.
        """
        url = self.url.resolve()
        title = name_of(url)
        with ExitStack() as stack:
            try:
                session = stack.enter_context(_opening(url)(url, title))
            except DatasetFileError as error:
                raise DatasetFileError(f"{self.url.where}: {error}") from None
            found = session.schema(Query(self.query).no_rows())
            # SQLite tells the second of two columns of one name apart, as "age:1"
            names = [
                name.rpartition(":")[0] if _is_second(name, found.names) else name
                for name in found.names
            ]
            yield DatabaseReader(session, Query(self.query, names), found)


def _is_second(name: str, names: Sequence[str]) -> bool:
    first, colon, number = name.rpartition(":")
    return bool(colon) and number.isdigit() and first in names


def _opening(url: URL) -> Opening:
    """Returns how to connect: a URL that names no driver goes through ADBC where that is there."""
    from prefect_federated.datasets.alchemy import alchemy_session

    if "+" in url.drivername or (
        url.database in (None, "", ":memory:") and (url.get_backend_name() == "sqlite")
    ):
        return alchemy_session
    try:
        if url.drivername == "sqlite":
            import adbc_driver_sqlite  # noqa: F401

            from prefect_federated.datasets.adbc import sqlite_session

            return sqlite_session
        if url.drivername == "postgresql":
            import adbc_driver_postgresql  # noqa: F401

            from prefect_federated.datasets.adbc import postgresql_session

            return postgresql_session
    except ModuleNotFoundError:
        pass
    return alchemy_session


@dataclass
class DatabaseReader:
    """A `Reader` of a query's rows."""

    session: Session
    query: Query
    schema: pyarrow.Schema
    _known: dict[str, "_Own"] = field(default_factory=dict)

    @property
    def names(self) -> Sequence[str]:
        """The names of the query's columns."""
        return self.query.names

    def look(self, names: Sequence[str]) -> Mapping[str, Kind | Unusable]:
        """Returns what the columns hold: by their types, or by their first 10,000 rows."""
        return {name: own.kind for name, own in self._own(names).items()}

    def distinct(self, name: str, most: int) -> Sequence[str | None]:
        """Returns the different values of a column as text; no more of them than `most` + 1."""
        found = self.session.rows(self.query.distinct(name, most))
        return [None if value is None else str(value) for (value,) in found]

    def batches(
        self, columns: Mapping[str, Kind], rows: int, part: Part | None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yields columns, with only the rows of `part` if given."""
        own = self._own(columns)
        if self.session.is_typed:
            made = {name: _converted(own[name], kind) for name, kind in columns.items()}
            yield from self.session.batches(self.query.select(made, part), rows)
            return
        plain = self.query.select(dict.fromkeys(columns), part)
        yield from self.session.batches(plain, rows, [is_text(own[name].type) for name in columns])

    def aggregates(
        self, columns: Mapping[str, Kind], part: Part | None
    ) -> Mapping[str, Aggregate] | None:
        """Returns what the database computed; without columns that it cannot."""
        if not columns:
            return {}
        own = self._own(columns)
        computed = {name: self._number(own[name], kind) for name, kind in columns.items()}
        numbers = {name: number for name, number in computed.items() if number}
        categories = [
            name
            for name, kind in columns.items()
            if kind == own[name].kind == "categorical" and is_text(own[name].type)
        ]

        def ask(*, finite_only: bool) -> dict[str, Aggregate]:
            is_sqlite = self.session.dialect_name == "sqlite"
            statement = self.query.aggregates(
                numbers, categories, part, sqlite_total if is_sqlite else total,
                finite_only=finite_only,
            )  # fmt: skip
            rows = self.session.rows(statement)
            return read_aggregates(rows, columns, list(numbers), categories)

        found = ask(finite_only=False)
        return ask(finite_only=True) if has_infinite(found.values()) else found

    def _number(self, own: "_Own", kind: Kind) -> Expression | None:
        """Returns a column as a number that the database computes with; None if it is none."""
        if kind in ("categorical", "empty"):
            return None
        if self.session.dialect_name == "postgresql":
            return POSTGRESQL_NUMBERS.get(own.kind) if isinstance(own.kind, str) else None
        return as_it_is if own.kind == "numeric" and not is_text(own.type) else None

    def _own(self, names: Iterable[str]) -> Mapping[str, "_Own"]:
        """Returns what columns are by themselves: by their types, or by their first rows."""
        new = [name for name in names if name not in self._known]
        if self.session.is_typed:
            self._known |= {name: _typed(self.schema.field(name)) for name in new}
        elif new:
            self._known |= self._sampled(new)
        return {name: self._known[name] for name in names}

    def _sampled(self, names: Sequence[str]) -> Mapping[str, "_Own"]:
        """Looks at the first rows of columns, and further where these have no value."""
        first = self.query.select(dict.fromkeys(names), first=LOOKED_AT)
        batches = list(self.session.batches(first, LOOKED_AT))
        found = {}
        for position, name in enumerate(names):
            column = _joined([batch.column(position) for batch in batches])
            if len(column) == LOOKED_AT and column.null_count == len(column):
                later = self.session.batches(self.query.present(name, LOOKED_AT), LOOKED_AT)
                column = _joined([batch.column(0) for batch in later])
            found[name] = _Own(column.type, self._kind(name, column))
        return found

    def _kind(self, name: str, column: pyarrow.Array) -> Kind | Unusable:
        if column.null_count == len(column):
            return "empty"
        if self.session.dialect_name != "sqlite" or not is_text(column.type):
            return kind_of(name, column.type)
        texts = Texts(name)  # SQLite has text columns for numbers and dates, too
        texts.add(column, 1)
        return texts.kind()


@dataclass(frozen=True)
class _Own:
    """What a column is by itself: the type of what is read of it, and what it holds."""

    type: pyarrow.DataType
    kind: Kind | Unusable


def _typed(column: pyarrow.Field) -> _Own:
    noted = column.metadata or {}
    called = next((noted[name] for name in _TYPE_NAMES if name in noted), b"")
    if called == b"numeric":
        return _Own(column.type, "numeric")  # which ADBC gives as text, for all its digits
    if called == b"money":  # which it gives in cents, or whatever the database's country has
        return _Own(column.type, unusable(column.name, "money"))
    return _Own(column.type, kind_of(column.name, column.type))


def _converted(own: _Own, kind: Kind) -> Expression | None:
    """Returns what to select of a PostgreSQL column instead of itself, if anything."""
    if own.kind == "datetime":
        return as_text if kind == "categorical" else as_epoch
    if own.kind == "numeric":
        is_exact = not pyarrow.types.is_integer(own.type) and not pyarrow.types.is_floating(
            own.type
        )
        return as_double if is_exact else None
    if isinstance(own.kind, Unusable):
        return as_text
    return None


def _joined(arrays: Sequence[pyarrow.Array]) -> pyarrow.Array:
    if not arrays:
        return pyarrow.nulls(0)
    if len({array.type for array in arrays}) > 1:
        arrays = [as_names(array) for array in arrays]
    return pyarrow.concat_arrays(arrays)
