"""What of one column may be released by group, so that totals do not tell the rest.

The rows that are in no released group are a group, too: its numbers are the totals minus those of
the groups that are released.
"""

import itertools
from collections.abc import Mapping, Sequence

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.columns import (
    FEW,
    MOST_CELLS,
    REST,
    TOO_MANY_CELLS,
    Rules,
    absent,
    hidden_presence,
    is_told_in_full,
    nothing,
    reason_not_in_full,
    released_names,
    released_summary,
    told_categories,
    told_histogram,
    whole_counts,
)
from prefect_federated.statistics.intervals import Bins, releasable
from prefect_federated.statistics.schema import Histogram, Summary, Withheld
from prefect_federated.statistics.suppression import is_small, withheld_groups


def released_group_rows(
    rows: Mapping[str, float], total: float, policy: PrivacyPolicy
) -> tuple[dict[str, float], list[Withheld]]:
    """Returns the groups that are released, with their rows, and a line if there are others."""
    if len(rows) > FEW and len(rows) * policy.rows_per_category > total:
        why = f"more than one group for {policy.rows_per_category} rows"
        return {}, [Withheld(what="groups", reason=why)]
    hidden = withheld_groups(rows, total - sum(rows.values()), policy.minimum_rows)
    if not hidden:
        return dict(rows), []
    why = f"fewer than {policy.minimum_rows} rows, or would reveal one that has; not named"
    told = {name: count for name, count in rows.items() if name not in hidden}
    return told, [Withheld(what="some groups", reason=why)]


def released_by_group(
    whole: Summary, groups: Mapping[str, Summary], named: Sequence[str], rules: Rules
) -> dict[str, Summary]:
    """Returns a column's numbers in each group that is named.

    Args:
        whole: In all rows; exact, as all that is given.
        groups: In each group.
        named: The groups whose rows are released.
        rules: Of the column; its cells are those by group.
    """
    policy = rules.policy
    told = _told_groups(whole, groups, named, policy)
    scopes = {name: groups[name] for name in told}
    rest = _rest(whole, scopes)
    summaries = {}
    for name in named:
        if name not in told:
            why = reason_not_in_full(groups[name], policy)
            why = (
                why or "with the totals, it would tell those of the other rows, which are withheld"
            )
            summaries[name] = nothing(why)
            continue
        numbers = groups[name].model_copy(update={"histogram": None, "categories": None})
        summaries[name] = released_summary(numbers, rules)
    if any(summary.histogram is not None for summary in scopes.values()):
        _add_histograms(summaries, whole, scopes, rules)
    if any(summary.categories is not None for summary in scopes.values()):
        tables = {**scopes, REST: rest}
        beside = absent(rest) if "count" in hidden_presence(whole, policy) else 0.0
        names = released_names(tables, policy, beside)
        for name, exact in scopes.items():
            counts, other, lines = told_categories(exact, names, policy, is_other_told=True)
            summaries[name] = summaries[name].model_copy(
                update={
                    "categories": counts,
                    "other_categories": other,
                    "withheld": [*summaries[name].withheld, *lines],
                }
            )
    return summaries


def _told_groups(
    whole: Summary, groups: Mapping[str, Summary], named: Sequence[str], policy: PrivacyPolicy
) -> list[str]:
    """Returns the groups whose numbers of the column are released."""
    told = [name for name in named if is_told_in_full(groups[name], policy)]
    told.sort(key=lambda name: -(groups[name].count or 0))
    rows_beside = (whole.count or 0) - sum(summary.count or 0 for summary in groups.values())
    hidden = hidden_presence(whole, policy)
    derived = [name for name in ("missing", "infinite") if name not in hidden]
    while told:
        rest = _rest(whole, {name: groups[name] for name in told})
        others = [name for name, summary in groups.items() if name not in told and summary.count]
        is_one = len(others) == 1 and not rows_beside
        enough = not is_one and (rest.count or 0) >= policy.minimum_rows
        is_safe = not rest.count or enough
        for name in derived:
            is_safe = is_safe and not is_small(getattr(rest, name) or 0.0, policy.small_missing)
        if is_safe:
            break
        told.pop()
    return [name for name in named if name in told]


def _rest(whole: Summary, groups: Mapping[str, Summary]) -> Summary:
    """Returns the counts of the rows that are in none of some groups."""

    def left(name: str) -> float:
        taken = sum(getattr(summary, name) or 0.0 for summary in groups.values())
        return float((getattr(whole, name) or 0.0) - taken)

    categories = None
    if whole.categories is not None:
        categories = {
            name: (count or 0.0)
            - sum((summary.categories or {}).get(name) or 0.0 for summary in groups.values())
            for name, count in whole.categories.items()
        }
    return Summary(
        count=left("count"),
        missing=left("missing"),
        infinite=left("infinite"),
        categories=categories,
    )


def _add_histograms(
    summaries: dict[str, Summary], whole: Summary, groups: Mapping[str, Summary], rules: Rules
) -> None:
    policy = rules.policy
    given = [summary.histogram for summary in (whole, *groups.values())]
    known = [histogram for histogram in given if histogram is not None]
    coarsest = min(known, key=lambda histogram: len(histogram.edges)).edges
    tables = [_on_edges(summary, coarsest) for summary in (whole, *groups.values())]
    counted = [table for table in tables if table is not None]
    scopes = len(groups) + 1
    if len(counted) < len(tables) or any(len(low) != scopes + 1 for low, _ in rules.cells):
        why = "the groups' bins do not fit one another, or those of an earlier release"
        for name in groups:
            _extend(summaries, name, None, [Withheld(what="histogram", reason=why)])
        return
    if len(rules.cells) > MOST_CELLS:
        for name in groups:
            _extend(summaries, name, None, [Withheld(what="histogram", reason=TOO_MANY_CELLS)])
        return
    total, *parts = counted
    rest = [n - sum(part[i] for part in parts) for i, n in enumerate(total)]
    beside = [0.0] * scopes
    if "count" in hidden_presence(whole, policy):
        taken = sum(absent(summary) for summary in groups.values())
        beside = [*([0.0] * len(parts)), absent(whole) - taken]
    bins = Bins(coarsest, [*parts, rest])
    released = releasable(rules.cells, bins, rules.limits(beside))
    rules.keep(bins, released)
    for name, part in zip(groups, parts, strict=True):
        shown = Histogram(edges=coarsest, counts=list(part))
        _extend(summaries, name, *told_histogram(shown, part, released, policy))


def _on_edges(exact: Summary, edges: Sequence[float]) -> list[float] | None:
    """Returns a histogram's counts on fewer of its own edges; None if they are not its own."""
    if exact.histogram is None:
        return None
    counts = whole_counts(exact.histogram, exact)
    place = {edge: i for i, edge in enumerate(exact.histogram.edges)}
    if counts is None or any(edge not in place for edge in edges):
        return None
    if edges[0] != exact.histogram.edges[0] or edges[-1] != exact.histogram.edges[-1]:
        return None
    starts = [place[edge] for edge in edges]
    return [sum(counts[a:b]) for a, b in itertools.pairwise(starts)]


def _extend(
    summaries: dict[str, Summary], name: str, histogram: Histogram | None, lines: list[Withheld]
) -> None:
    summaries[name] = summaries[name].model_copy(
        update={"histogram": histogram, "withheld": [*summaries[name].withheld, *lines]}
    )
