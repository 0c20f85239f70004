"""What a column of a dataset holds."""

from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["numeric", "boolean", "categorical", "datetime", "empty"]
"""Booleans count as 0 and 1, datetimes as seconds since 1970 in UTC; an empty column has no values
at this site, so it agrees with any kind that it has elsewhere."""
