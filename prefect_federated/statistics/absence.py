"""How much of a column is missing, also where a site lets out only that it is little, or most.

A site with fewer values than its minimum releases nothing of a column but the reason; from that and
its rows follows that nearly all is missing. That is told, as a range.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from prefect_federated.statistics.schema import OVERALL, Feature, Split, Summary
from prefect_federated.statistics.wording import (
    NONE,
    WITHHELD,
    keeps_back,
    overall_of,
    percent,
    total,
)

_FEW = re.compile(r"fewer than (\d+) values( are missing)?")

Rows = Mapping[str, float | None]
"""Site -> its rows; None where it withholds them."""


@dataclass(frozen=True)
class Absence:
    """Values of a column that are missing: between `low` and `high` of `rows`."""

    low: float
    high: float
    rows: float

    @property
    def share(self) -> float:
        """The middle of the range, 0 to 1."""
        return (self.low + self.high) / 2 / self.rows if self.rows else 0.0

    @property
    def is_exact(self) -> bool:
        """Whether it is known to the last value."""
        return self.low == self.high

    def words(self) -> str:
        """Returns the share as a person reads it.

        >>> Absence(5, 5, 10).words(), Absence(0, 4, 200).words(), Absence(90, 100, 100).words()
        ('50 %', 'up to 2.0 %', '90 % or more')
        >>> Absence(60, 70, 100).words()
        '60 to 70 %'
        """
        low, high = percent(self.low, self.rows), percent(self.high, self.rows)
        if self.is_exact or low == high:
            return low
        if self.low <= 0:
            return f"up to {high}"
        return f"{low} or more" if self.high >= self.rows else f"{low.removesuffix(' %')} to {high}"


def absence(each: Summary, rows: float | None) -> Absence | None:
    """Returns what is known of the missing values of one column at one site; None for nothing.

    Args:
        each: The column's numbers.
        rows: Of the split at the site.
    """
    whole = total(each)
    if each.missing is not None and whole:
        return Absence(each.missing, each.missing, whole)
    if not rows:
        return None
    for line in each.withheld:
        if found := _FEW.match(line.reason):
            few = min(float(found[1]) - 1, rows)
            if found[2]:
                return Absence(0.0, few, rows)
            if line.what == "everything":
                return Absence(rows - few, rows, rows)
    return None


def absence_at(feature: Feature, split: Split, site: str) -> Absence | None:
    """Returns the same for a site by name, or for "all sites" of which something is known."""
    if site != OVERALL:
        each = feature.by_site.get(site)
        return None if each is None else absence(each, rows_of(split).get(site))
    return together(feature, rows_of(split))


def together(feature: Feature, rows: Rows) -> Absence | None:
    """Returns the missing values of all sites of which something is known."""
    found = [absence(each, rows.get(site)) for site, each in feature.by_site.items()]
    known = [each for each in found if each is not None]
    if not known:
        return None
    return Absence(*(sum(getattr(a, part) for a in known) for part in ("low", "high", "rows")))


def absence_words(feature: Feature, split: Split, site: str) -> str:
    """Returns the share that is missing as a table has it, or why it is not there."""
    found = absence_at(feature, split, site)
    if found is not None:
        return found.words()
    each = overall_of(feature) if site == OVERALL else feature.by_site.get(site)
    if each is None:
        return "no column" if site in feature.without else NONE
    return WITHHELD if keeps_back(each.withheld, "missing") else NONE


def values_of(each: Summary, rows: float | None) -> float | None:
    """Returns how many values a column has at a site; None where that is not nearly known."""
    if each.count is not None:
        return each.count
    found = absence(each, rows)
    return None if found is None or found.low > 0 else found.rows


def rows_of(split: Split) -> Rows:
    """Returns the rows of each site."""
    return {site: there.rows for site, there in split.sites.items()}
