"""What a column of a dataset holds."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["numeric", "boolean", "categorical", "datetime", "empty"]
"""Booleans count as 0 and 1, datetimes as seconds since 1970 in UTC; an empty column has no values
at this site, so it agrees with any kind that it has elsewhere."""

CALLED: dict[Kind, str] = {
    "numeric": "numbers",
    "boolean": "truth values",
    "categorical": "text",
    "datetime": "dates",
    "empty": "nothing",
}
"""What a person calls the values of a kind."""


@dataclass(frozen=True)
class Unusable:
    """Why a column has no kind, in a sentence or two; what the site can do about it."""

    reason: str
