"""What of one column of a split may be released, without noise: of all rows, and of groups."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.disclosure import reason_against_moments
from prefect_federated.statistics.extremes import moved_outwards
from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.intervals import Bins, Cell, Limits, releasable
from prefect_federated.statistics.schema import Histogram, Summary, Withheld
from prefect_federated.statistics.suppression import is_small, withheld_cells

REST = "\0"
"""In tables by group, the rows in no released group; what is known of them follows from totals."""

FEW = 5
"""So many categories or groups may always have names; those of few rows have none in any case."""

MOST_CELLS = 5_000
"""So many intervals of one column, of one state of the data, are told; nothing beyond."""
TOO_MANY_CELLS = "too many different bins of it were released; ask with edges of an earlier job"

_PRESENCE = ("count", "missing", "infinite")
_MOMENTS = ("sum", "mean", "mean_rest", "variance", "std")


@dataclass
class Rules:
    """What the rules need beside the numbers.

    Args:
        policy: The site's.
        key: The site's secret.
        column: The column, with its dataset and split.
        kind: What the column holds.
        low: Its minimum in the whole split, exact.
        high: Its maximum.
        cells: Intervals of it that are known already; those that are released now are added.
    """

    policy: PrivacyPolicy
    key: bytes
    column: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    cells: list[Cell] = field(default_factory=list)

    def extremes_of(self, exact: Summary) -> tuple[float | None, float | None]:
        """Returns the minimum and the maximum of some of the rows, moved outwards."""
        if exact.min is None or exact.max is None:
            return None, None
        if self.kind == "boolean":
            return 0.0, 1.0
        spread = 0.0 if self.low is None or self.high is None else self.high - self.low
        share = self.policy.minmax_noise
        return moved_outwards(exact.min, exact.max, spread, share, self.key, self.column)

    def keep(self, bins: Bins, released: Sequence[bool]) -> None:
        """Adds the bins that are released and hold values to the cells."""
        known = set(self.cells)
        for cell, is_out in zip(bins.cells(), released, strict=True):
            if is_out and cell not in known and cell[0][1:] != cell[1][1:]:
                self.cells.append(cell)

    def limits(self, beside: Sequence[float]) -> Limits:
        """Returns what no known number of values may be below."""
        low, high = self.extremes_of(Summary(min=self.low, max=self.high))
        return Limits(
            self.policy.small_cell,
            -math.inf if low is None else low,
            math.inf if high is None else high,
            beside,
            self.policy.small_missing,
        )


def absent(summary: Summary) -> float:
    """Returns how many values are missing or infinite."""
    return (summary.missing or 0.0) + (summary.infinite or 0.0)


def released_summary(exact: Summary, rules: Rules) -> Summary:
    """Returns what of a column's numbers may be released, with a line for all that is withheld."""
    policy = rules.policy
    if exact.count is None:
        return nothing("the site did not compute how many values there are")
    if is_small(exact.count, policy.minimum_rows):
        return nothing(f"fewer than {policy.minimum_rows} values")
    withheld = list(exact.withheld)
    told: dict[str, object] = {name: getattr(exact, name) for name in (*_PRESENCE, *_MOMENTS)}
    hidden = hidden_presence(exact, policy)
    told |= dict.fromkeys(hidden)
    if hidden:
        why = f"fewer than {policy.small_missing} values are missing or infinite"
        withheld.append(Withheld(what=", ".join(hidden), reason=why))
    against = reason_against_moments(exact, policy)
    if exact.variance is None and exact.count > 1 and policy.small_cell > 1:
        against = "the site did not compute its variance, which says whether single rows stand out"
    if "count" in hidden:
        against = f"it would tell that fewer than {policy.small_missing} values are missing"
    if against is not None:
        told |= dict.fromkeys(_MOMENTS)
        if exact.mean is not None:
            withheld.append(Withheld(what="sum, mean, variance", reason=against))
    told["min"], told["max"] = rules.extremes_of(exact)
    beside = absent(exact) if "count" in hidden else 0.0
    if exact.histogram is not None:
        told["histogram"], lines = _released_histogram(exact, rules, beside)
        withheld += lines
    if exact.categories is not None:
        names = released_names({"": exact}, policy, beside)
        told["categories"], told["other_categories"], lines = told_categories(
            exact, names, policy, is_other_told=not beside
        )
        withheld += lines
    if exact.quantiles:
        why = "a quantile is a row's own value; it is computed from counts instead"
        withheld.append(Withheld(what="quantiles", reason=why))
    return Summary.model_validate({**told, "withheld": withheld})


def nothing(reason: str) -> Summary:
    """Returns a summary all of which is withheld."""
    return Summary(withheld=[Withheld(what="everything", reason=reason)])


def is_told_in_full(exact: Summary, policy: PrivacyPolicy) -> bool:
    """Tells whether a column's count, sum, mean and variance may be released."""
    return reason_not_in_full(exact, policy) is None


def reason_not_in_full(exact: Summary, policy: PrivacyPolicy) -> str | None:
    """Returns why not all of a column's count, sum, mean and variance may be released."""
    if exact.count is None:
        return "the site did not compute how many values there are"
    if is_small(exact.count, policy.minimum_rows):
        return f"fewer than {policy.minimum_rows} values"
    if hidden_presence(exact, policy):
        return f"fewer than {policy.small_missing} values are missing or infinite"
    return reason_against_moments(exact, policy)


def hidden_presence(exact: Summary, policy: PrivacyPolicy) -> list[str]:
    """Returns which of the numbers that add up to all rows are withheld."""
    if not exact.count:  # an empty column hides nobody's value
        return []
    cells = {name: [getattr(exact, name) or 0.0] for name in _PRESENCE}
    hidden = withheld_cells(cells, policy.small_missing)
    return [name for name in _PRESENCE if name in hidden and getattr(exact, name) is not None]


def _released_histogram(
    exact: Summary, rules: Rules, beside: float
) -> tuple[Histogram | None, list[Withheld]]:
    histogram = exact.histogram
    assert histogram is not None
    counts = whole_counts(histogram, exact)
    why = None
    if counts is None:
        why = "its bins do not hold all values"
    elif (bins := inner_bins(histogram)) > rules.policy.bins_for(exact.count or 0, bins):
        most = rules.policy.bins_for(exact.count or 0, bins)
        why = f"{bins} bins are more than {most} for so few values"
    if why is not None or counts is None:
        return None, [Withheld(what="histogram", reason=why or "")]
    cells = Bins(histogram.edges, [counts])
    if len(rules.cells) > MOST_CELLS:
        return None, [Withheld(what="histogram", reason=TOO_MANY_CELLS)]
    released = releasable(rules.cells, cells, rules.limits([beside]))
    rules.keep(cells, released)
    return told_histogram(histogram, counts, released, rules.policy)


def whole_counts(histogram: Histogram, exact: Summary) -> list[float] | None:
    """Returns a histogram's counts; None if they do not add up to the column's values."""
    counts = [count for count in histogram.counts if count is not None]
    is_whole = len(counts) == len(histogram.counts) and sum(counts) == exact.count
    return counts if is_whole and counts else None


def inner_bins(histogram: Histogram) -> int:
    """Returns how many bins there are, without the two that take all beyond."""
    outer = (histogram.edges[0] <= -OUTER) + (histogram.edges[-1] >= OUTER)
    return max(len(histogram.counts) - outer, 1)


def told_histogram(
    histogram: Histogram, counts: Sequence[float], released: Sequence[bool], policy: PrivacyPolicy
) -> tuple[Histogram | None, list[Withheld]]:
    """Returns a histogram without the bins that are withheld, and the line that says so."""
    if not any(count for count, out in zip(counts, released, strict=True) if out):
        why = f"each bin has fewer than {policy.small_cell} rows, or would reveal one that has"
        return None, [Withheld(what="histogram", reason=why)]
    told = [count if out else None for count, out in zip(counts, released, strict=True)]
    lines = []
    if not all(released):
        gone = len(released) - sum(released)
        why = f"fewer than {policy.small_cell} rows or none, or would reveal one that has"
        lines = [Withheld(what=f"{gone} of {len(told)} bins of the histogram", reason=why)]
    return Histogram(edges=histogram.edges, counts=told), lines


def released_names(
    by_group: Mapping[str, Summary], policy: PrivacyPolicy, beside: float = 0.0
) -> set[str] | str:
    """Returns which categories are named, or why none is.

    Args:
        by_group: The column in each group, and `REST`; in all rows, under any name.
        policy: The site's.
        beside: Rows without a category whose number is withheld.
    """
    names = sorted({name for summary in by_group.values() for name in summary.categories or {}})
    for summary in by_group.values():
        full = sum(1 for count in (summary.categories or {}).values() if count)
        if full > FEW and full * policy.rows_per_category > (summary.count or 0):
            return (
                f"more than one category for {policy.rows_per_category} values; such a column may "
                "hold names or free text"
            )
    groups = list(by_group.values())
    cells = {
        name: [(summary.categories or {}).get(name) or 0.0 for summary in groups] for name in names
    }
    cells = {name: row for name, row in cells.items() if any(row)}
    unnamed = [(summary.other_categories or 0.0) + beside for summary in groups]
    hidden = withheld_cells(cells, policy.small_cell, unnamed, policy.small_missing * bool(beside))
    return cells.keys() - hidden


def told_categories(
    exact: Summary, names: set[str] | str, policy: PrivacyPolicy, is_other_told: bool
) -> tuple[dict[str, float | None] | None, float | None, list[Withheld]]:
    """Returns the named categories, the rows in all others, and a line if there are others."""
    if isinstance(names, str):
        return None, None, [Withheld(what="categories", reason=names)]
    categories = exact.categories or {}
    named = {name: count for name, count in categories.items() if name in names}
    other = (exact.other_categories or 0.0) + sum(
        count or 0.0 for name, count in categories.items() if name not in names
    )
    if not other:
        return named, None, []
    why = f"fewer than {policy.small_cell} rows, or would reveal one that has; not named"
    lines = [Withheld(what="some categories", reason=why)]
    is_other_told = is_other_told and not is_small(other, policy.small_cell)
    return named, other if is_other_told else None, lines
