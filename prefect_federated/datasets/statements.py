"""The SQL that is asked of a database, around the query of a dataset; SQLAlchemy writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Double,
    Integer,
    SQLColumnExpression,
    String,
    Subquery,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    select,
    text,
    union_all,
)
from sqlalchemy.sql import quoted_name
from sqlalchemy.sql.selectable import ExecutableReturnsRows as Statement

from prefect_federated.datasets.sources import MOST_CATEGORIES, Part

Column: TypeAlias = SQLColumnExpression[object]
Expression: TypeAlias = Callable[[Column], Column]


@dataclass(frozen=True)
class Query:
    """A dataset's query, and the columns of it.

    Args:
        text: The `SELECT` as the site wrote it.
        names: Its columns; empty while they are not known.
    """

    text: str
    names: Sequence[str] = ()

    def select(
        self,
        expressions: Mapping[str, Expression | None],
        part: Part | None = None,
        first: int | None = None,
    ) -> Statement:
        """Returns a select of columns, each as it is or as an expression of it."""
        rows = self.rows()
        wanted = [
            (make(rows.c[name]) if make else rows.c[name]).label(quoted_name(name, True))
            for name, make in expressions.items()
        ]
        return select(*wanted).select_from(rows).where(*_is_of(rows, part)).limit(first)

    def no_rows(self) -> Statement:
        """Returns a select that has all columns and no rows."""
        return select(literal_column("*")).select_from(self.rows()).where(literal_column("1=0"))

    def present(self, name: str, rows: int) -> Statement:
        """Returns a select of the first values of a column that are there."""
        source = self.rows()
        return select(source.c[name]).where(source.c[name].is_not(None)).limit(rows)

    def distinct(self, name: str, most: int) -> Statement:
        """Returns a select of the different values of a column as text, up to `most` + 1."""
        return select(cast(self.rows().c[name], String)).distinct().limit(most + 1)

    def aggregates(
        self,
        numbers: Mapping[str, Expression],
        categories: Sequence[str],
        part: Part | None,
        total: Callable[[Column], Column],
        *,
        finite_only: bool = False,
    ) -> Statement:
        """Returns one statement for the aggregates of all columns.

        Its first row has null, null, the number of rows; then for each number its count (of all
        values), count, minimum, maximum and sum (of the finite ones if `finite_only`), then for
        each categorical column its count. The other rows have the position of a categorical column,
        a category, and its number of rows.
        """
        rows = self.rows()
        wide: list[Column] = []
        for name, make in numbers.items():
            value = make(rows.c[name])
            # what is infinite has a difference from itself that is not 0
            kept = case((value - value == 0, value)) if finite_only else value
            wide += [func.count(value), func.count(kept)]
            wide += [func.min(kept), func.max(kept), total(kept)]
        wide += [func.count(rows.c[name]) for name in categories]
        heads = [null(), cast(null(), String), func.count(), *wide]
        named: list[Column] = [each.label(f"v{place}") for place, each in enumerate(heads)]
        first = select(*named).select_from(rows).where(*_is_of(rows, part))
        nothing: list[Column] = [null()] * len(wide)
        counts = [
            select(literal_column(str(place)), counted.c.category, counted.c.n, *nothing)
            for place, counted in enumerate(self._counts(name, part) for name in categories)
        ]
        if not counts:
            return first
        return union_all(first, *counts)

    def _counts(self, name: str, part: Part | None) -> Subquery:
        rows = self.rows()
        return (
            select(cast(rows.c[name], String).label("category"), func.count().label("n"))
            .select_from(rows)
            .where(*_is_of(rows, part))
            .group_by(rows.c[name])
            .limit(MOST_CATEGORIES + 1)
            .subquery("counted")
        )

    def rows(self) -> Subquery:
        """Returns the query as what others select from."""
        asked = self.text.strip().rstrip(";").replace(":", r"\:")
        columns: list[ColumnClause[object]] = [
            column(quoted_name(name, True)) for name in self.names
        ]
        return text(f"{asked}\n").columns(*columns).subquery("dataset")  # a comment may end it


def as_it_is(value: Column) -> Column:
    """Returns the column."""
    return value


def as_double(value: Column) -> Column:
    """Returns a number in double precision."""
    return cast(value, Double)


def as_text(value: Column) -> Column:
    """Returns anything as text."""
    return cast(value, String)


def as_epoch(value: Column) -> Column:
    """Returns a date as PostgreSQL's seconds since 1970, in double precision."""
    return func.date_part("epoch", value)


def total(value: Column) -> Column:
    """Returns a sum in double precision."""
    return func.sum(cast(value, Double))


def sqlite_total(value: Column) -> Column:
    """Returns a sum in double precision, which no whole number overflows."""
    return func.total(value)


def _truth(value: Column) -> Column:
    return cast(cast(value, Integer), Double)


def _not_nan(value: Column) -> Column:
    return func.nullif(cast(value, Double), literal_column("CAST('NaN' AS DOUBLE PRECISION)"))


POSTGRESQL_NUMBERS: Mapping[str, Expression] = {
    "numeric": _not_nan,  # for PostgreSQL, NaN is a number, and the largest
    "boolean": _truth,
    "datetime": as_epoch,
}
"""Kind of a PostgreSQL column -> the column as a number."""


def _is_of(rows: Subquery, part: Part | None) -> list[ColumnElement[bool]]:
    return [] if part is None else [cast(rows.c[part.column], String) == part.value]
