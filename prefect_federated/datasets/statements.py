"""The SQL that is asked of a database, around the query of a dataset; SQLAlchemy writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Double,
    Integer,
    Select,
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

from prefect_federated.datasets.sources import MOST_CATEGORIES, Part

Expression = Callable[[ColumnElement[object]], ColumnElement[object]]


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
        self, expressions: Mapping[str, Expression | None], part: Part | None
    ) -> Select[tuple[object, ...]]:
        """Returns a select of columns, each as it is or as an expression of it."""
        rows = self.rows()
        wanted = [
            (make(rows.c[name]) if make else rows.c[name]).label(quoted_name(name, True))
            for name, make in expressions.items()
        ]
        return _of_part(select(*wanted).select_from(rows), rows, part)

    def no_rows(self) -> Select[tuple[object, ...]]:
        """Returns a select that has all columns and no rows."""
        return select(literal_column("*")).select_from(self.rows()).where(literal_column("1=0"))

    def present(self, name: str, rows: int) -> Select[tuple[object, ...]]:
        """Returns a select of the first values of a column that are there."""
        source = self.rows()
        return select(source.c[name]).where(source.c[name].is_not(None)).limit(rows)

    def distinct(self, name: str, most: int) -> Select[tuple[object, ...]]:
        """Returns a select of the different values of a column as text, up to `most` + 1."""
        return select(cast(self.rows().c[name], String)).distinct().limit(most + 1)

    def aggregates(
        self,
        numbers: Mapping[str, Expression],
        categories: Sequence[str],
        part: Part | None,
        total: Callable[[ColumnElement[object]], ColumnElement[object]],
        *,
        finite_only: bool = False,
    ) -> CompoundSelect[tuple[object, ...]] | Select[tuple[object, ...]]:
        """Returns one statement for the aggregates of all columns.

        Its first row has null, null, the number of rows; then for each number its count (of all
        values), count, minimum, maximum and sum (of the finite ones if `finite_only`), then for
        each categorical column its count. The other rows have the position of a categorical column,
        a category, and its number of rows.
        """
        rows = self.rows()
        wide: list[ColumnElement[object]] = []
        for name, make in numbers.items():
            value = make(rows.c[name])
            # what is infinite has a difference from itself that is not 0
            kept = case((value - value == 0, value)) if finite_only else value
            wide += [func.count(value), func.count(kept)]
            wide += [func.min(kept), func.max(kept), total(kept)]
        wide += [func.count(func.nullif(func.trim(rows.c[name]), "")) for name in categories]
        heads = [null(), cast(null(), String), func.count(), *wide]
        named = [each.label(f"v{place}") for place, each in enumerate(heads)]
        first = _of_part(select(*named).select_from(rows), rows, part)
        others = [
            self._counts(place, name, part, len(wide)) for place, name in enumerate(categories)
        ]
        return union_all(first, *others) if others else first

    def _counts(
        self, place: int, name: str, part: Part | None, padding: int
    ) -> Select[tuple[object, ...]]:
        rows = self.rows()
        by_category = select(cast(rows.c[name], String).label("category"), func.count().label("n"))
        grouped = (
            _of_part(by_category.select_from(rows), rows, part)
            .group_by(rows.c[name])
            .limit(MOST_CATEGORIES + 1)
            .subquery(f"counts_{place}")
        )
        nothing = [null() for _ in range(padding)]
        return select(literal_column(str(place)), grouped.c.category, grouped.c.n, *nothing)

    def rows(self) -> Subquery:
        """Returns the query as what others select from."""
        asked = self.text.strip().rstrip(";").replace(":", r"\:")
        columns = [column(quoted_name(name, True)) for name in self.names]
        return text(f"{asked}\n").columns(*columns).subquery("dataset")  # a comment may end it


def as_it_is(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns the column."""
    return value


def as_double(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns a number in double precision."""
    return cast(value, Double)


def as_text(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns anything as text."""
    return cast(value, String)


def as_epoch(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns a date as PostgreSQL's seconds since 1970, in double precision."""
    return func.date_part("epoch", value)


def total(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns a sum in double precision."""
    return func.sum(cast(value, Double))


def sqlite_total(value: ColumnElement[object]) -> ColumnElement[object]:
    """Returns a sum in double precision, which no whole number overflows."""
    return func.total(value)


def _truth(value: ColumnElement[object]) -> ColumnElement[object]:
    return cast(cast(value, Integer), Double)


def _not_nan(value: ColumnElement[object]) -> ColumnElement[object]:
    return func.nullif(cast(value, Double), literal_column("CAST('NaN' AS DOUBLE PRECISION)"))


POSTGRESQL_NUMBERS: Mapping[str, Expression] = {
    "numeric": _not_nan,  # for PostgreSQL, NaN is a number, and the largest
    "boolean": _truth,
    "datetime": as_epoch,
}
"""Kind of a PostgreSQL column -> the column as a number."""


def _of_part(
    statement: Select[tuple[object, ...]], rows: Subquery, part: Part | None
) -> Select[tuple[object, ...]]:
    if part is None:
        return statement
    return statement.where(cast(rows.c[part.column], String) == part.value)
