"""The pieces that an answer about a split is made of, each released or withheld on its own.

They are the split's rows, its groups' rows, each column, each column by group, and the products of
columns.
"""

from collections.abc import Mapping, Sequence

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.changes import mark_of
from prefect_federated.statistics.columns import (
    Rules,
    is_told_in_full,
    released_summary,
)
from prefect_federated.statistics.disclosure import released_pairs
from prefect_federated.statistics.grouped import released_by_group, released_group_rows
from prefect_federated.statistics.history import question, rules_of, subject_key
from prefect_federated.statistics.ledger import Mark, Release
from prefect_federated.statistics.noised import (
    bounds_of,
    noised_group_rows,
    noised_summary,
    numbers_of,
)
from prefect_federated.statistics.pieces import Now, Piece, Pieces
from prefect_federated.statistics.schema import ColumnAtSite, CoMoments, SplitFromSite, Summary


def pieces_of(
    name: str,
    split: SplitFromSite,
    policy: PrivacyPolicy,
    group_by: str | None,
    dataset: str,
    key: bytes,
) -> Pieces:
    """Returns the pieces of a split.

    Args:
        name: Of the split.
        split: Exact.
        policy: The site's.
        group_by: The column whose values make the groups.
        dataset: Of which dataset.
        key: The site's secret.
    """
    asking = rules_of(policy)
    usable = {
        column: given for column, given in split.columns.items() if given.summary.count is not None
    }
    rules = {
        column: Rules(policy, key, subject_key(dataset, name, column), given.kind)
        for column, given in usable.items()
    }
    columns = {
        column: _column(name, column, given, split.rows, rules[column], asking)
        for column, given in usable.items()
    }
    rows = Piece(
        subject_key(name, "rows"),
        question(asking, "rows"),
        {"": Mark(counts={"rows": split.rows or 0.0})},
        lambda now: now.release.model_copy(
            update={"rows": now.mechanism.count(split.rows or 0.0) if now.mechanism else split.rows}
        ),
    )
    group_rows, by_group = None, {}
    if split.groups and group_by is not None:
        after = [rows, *([columns[group_by]] if group_by in columns else [])]
        group_rows = _group_rows(name, split, group_by, policy, after, asking)
        by_group = {
            column: piece
            for column, given in usable.items()
            if (
                piece := _by_group(
                    name, column, split, group_by, rules[column], columns[column], asking
                )
            )
        }
    pairs = None
    if split.co_moments is not None and policy.noise is None:
        pairs = _pairs(name, split, split.co_moments, policy, columns, asking)
    return Pieces(rows, group_rows, columns, by_group, pairs)


def _column(
    split: str, column: str, given: ColumnAtSite, rows: float | None, rules: Rules, asking: str
) -> Piece:
    exact, policy = given.summary, rules.policy
    bounds = bounds_of(column, given.kind, policy)
    subject = subject_key(split, "column", column)

    def compute(now: Now) -> Release:
        if now.mechanism is not None:
            summary = noised_summary(
                exact, given.kind, bounds, policy, now.mechanism, now.name_tables
            )
        else:
            rules.low, rules.high = now.extremes(subject)
            rules.cells = now.subject.cells
            summary = released_summary(exact, rules)
        return now.release.model_copy(update={"summary": summary})

    return Piece(
        subject,
        question(asking, *_asked(exact)),
        {"": mark_of(exact, rows)},
        compute,
        numbers=numbers_of(exact, bounds),
        name_tables=_has_names(given),
    )


def _group_rows(
    name: str,
    split: SplitFromSite,
    group_by: str,
    policy: PrivacyPolicy,
    after: Sequence[Piece],
    asking: str,
) -> Piece:
    rows = {group: part.rows or 0.0 for group, part in split.groups.items()}

    def compute(now: Now) -> Release:
        if now.mechanism is not None:
            told, lines = noised_group_rows(rows, policy, now.mechanism, now.name_tables)
        else:
            told, lines = released_group_rows(rows, split.rows or 0.0, policy)
        return now.release.model_copy(update={"group_rows": told, "withheld": lines})

    return Piece(
        subject_key(name, "groups", group_by),
        question(asking, "groups"),
        {group: Mark(counts={"rows": count}) for group, count in rows.items()},
        compute,
        after=after,
        name_tables=1,
    )


def _by_group(
    name: str,
    column: str,
    split: SplitFromSite,
    group_by: str,
    rules: Rules,
    whole: Piece,
    asking: str,
) -> Piece | None:
    given = split.columns[column]
    parts = {
        group: part.columns[column].summary
        for group, part in split.groups.items()
        if column in part.columns
    }
    if not parts:
        return None
    policy = rules.policy
    bounds = bounds_of(column, given.kind, policy)
    by_group_rules = Rules(policy, rules.key, rules.column, rules.kind)

    def compute(now: Now) -> Release:
        named = [group for group in now.groups if group in parts]
        if now.mechanism is not None:
            told = {
                group: noised_summary(
                    parts[group], given.kind, bounds, policy, now.mechanism, now.name_tables
                )
                for group in named
            }
        else:
            by_group_rules.low, by_group_rules.high = now.extremes(whole.key)
            by_group_rules.cells = now.subject.cells
            told = released_by_group(given.summary, parts, named, by_group_rules)
        return now.release.model_copy(update={"groups": told})

    asked = sorted({str(_asked(exact)) for exact in parts.values()})
    return Piece(
        subject_key(name, "column by group", column, group_by),
        question(asking, "by group", asked),
        {group: mark_of(exact, split.groups[group].rows) for group, exact in parts.items()},
        compute,
        after=[whole],
        numbers=max(numbers_of(exact, bounds) for exact in parts.values()),
        name_tables=_has_names(given),
    )


def _pairs(
    name: str,
    split: SplitFromSite,
    exact: CoMoments,
    policy: PrivacyPolicy,
    columns: Mapping[str, Piece],
    asking: str,
) -> Piece:
    summaries = {column: given.summary for column, given in split.columns.items()}
    told = {
        column for column, given in summaries.items() if is_told_in_full(given, policy)
    } & columns.keys()

    def compute(now: Now) -> Release:
        return now.release.model_copy(
            update={"co_moments": released_pairs(exact, summaries, told, policy)}
        )

    return Piece(
        subject_key(name, "pairs"),
        question(asking, "pairs", exact.columns),
        {},
        compute,
        after=[columns[column] for column in exact.columns if column in columns],
    )


def _asked(exact: Summary) -> tuple[object, ...]:
    given = [name for name, value in exact if value not in (None, []) and name != "withheld"]
    return given, None if exact.histogram is None else exact.histogram.edges


def _has_names(given: ColumnAtSite) -> int:
    return int(given.kind == "categorical" and given.summary.categories is not None)
