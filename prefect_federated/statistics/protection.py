"""What may leave a site of its exact statistics: `protect`, the one way out.

Everything that is withheld leaves a line that says why. What each rule stops, and what none of them
does, is in docs/privacy-of-statistics.md.
"""

import random
from collections.abc import Callable, Container, Mapping
from datetime import UTC, datetime

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.errors import LedgerDamaged
from prefect_federated.statistics.columns import nothing
from prefect_federated.statistics.disclosure import of_columns
from prefect_federated.statistics.ledger import Ledger
from prefect_federated.statistics.pieces import Piece, Pieces
from prefect_federated.statistics.releases import Outcome, Releases, words_of
from prefect_federated.statistics.request import Request
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    FromSite,
    SplitFromSite,
    Summary,
    Withheld,
)
from prefect_federated.statistics.splits import pieces_of

__all__ = ["Ledger", "Request", "protect"]

_SYSTEM = random.SystemRandom()


def protect(
    answer: FromSite,
    policy: PrivacyPolicy,
    request: Request,
    ledger: Ledger,
    *,
    source: random.Random = _SYSTEM,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FromSite:
    """Returns what of a site's exact numbers may leave it.

    It writes what it releases, and the budget that is spent, to the ledger before it returns. If
    that cannot be done, everything is withheld. It raises nothing on account of the data.

    Args:
        answer: Exact numbers: of each split `rows`, of each column `count`, `missing` and
            `infinite`; histograms hold all values of the column, in two outer bins if need be.
        policy: The site's.
        request: What was asked.
        ledger: The site's.
        source: Of random numbers, the system's but for tests.
        now: The time.
    """
    answer = _allowed(answer, policy, request)
    if policy.noise is not None and request.kind == "refine":
        return _nothing(answer, "with noise, quantiles follow from the histogram", "quantiles")
    if all(_has_no_numbers(split) for split in answer.splits.values()):
        return answer
    try:
        key = ledger.key()
        with ledger.account(request.dataset) as account:
            releases = Releases(account, policy, source, request.job, now())
            return _Protection(answer, policy, request, releases, key).released()
    except LedgerDamaged as error:
        return _nothing(answer, str(error))
    except OSError as error:
        return _nothing(
            answer,
            f"the site cannot write its ledger of released statistics ({error.strerror}); make the "
            f"folder {ledger.folder.name!r} in the site's data folder one that it can write to",
        )


def _allowed(answer: FromSite, policy: PrivacyPolicy, request: Request) -> FromSite:
    """Returns an answer without the columns that may not be used; those that were named say so."""
    named = request.features or ()

    def allowed(split: SplitFromSite) -> SplitFromSite:
        usable = set(policy.allowed(split.columns))
        columns = {
            name: column
            if name in usable
            else ColumnAtSite(kind=column.kind, summary=nothing("the site does not allow it"))
            for name, column in split.columns.items()
            if name in usable or name in named
        }
        groups = {name: allowed(group) for name, group in split.groups.items()}
        if request.group_by is not None and not policy.allowed([request.group_by]):
            groups = {}
        pairs = None if split.co_moments is None else of_columns(split.co_moments, usable)
        return split.model_copy(update={"columns": columns, "groups": groups, "co_moments": pairs})

    splits = {name: allowed(split) for name, split in answer.splits.items()}
    return answer.model_copy(update={"splits": splits})


def _has_no_numbers(split: SplitFromSite) -> bool:
    """Tells whether a site has read nothing of a split, as no column was left to read."""
    return (
        split.rows is None
        and not split.groups
        and split.co_moments is None
        and all(
            column.summary.withheld and column.summary == Summary(withheld=column.summary.withheld)
            for column in split.columns.values()
        )
    )


def _nothing(answer: FromSite, reason: str, what: str = "everything") -> FromSite:
    """Returns an answer all of which is withheld."""
    line = Withheld(what=what, reason=reason)
    splits = {name: _no_split(split, line) for name, split in answer.splits.items()}
    return FromSite(splits=splits, withheld=[*answer.withheld, line])


def _no_split(split: SplitFromSite, line: Withheld) -> SplitFromSite:
    columns = {
        name: ColumnAtSite(kind=column.kind, summary=Summary(withheld=[line]))
        for name, column in split.columns.items()
    }
    return SplitFromSite(rows=None, columns=columns, withheld=[*split.withheld, line])


class _Protection:
    """One answer on its way out."""

    def __init__(
        self,
        answer: FromSite,
        policy: PrivacyPolicy,
        request: Request,
        releases: Releases,
        key: bytes,
    ) -> None:
        self._answer = answer
        self._policy = policy
        self._request = request
        self._releases = releases
        self._key = key

    def released(self) -> FromSite:
        """Returns what may leave."""
        unread = {
            name: split for name, split in self._answer.splits.items() if _has_no_numbers(split)
        }
        small, again = self._small(unread)
        pieces = {
            name: pieces_of(
                name, split, self._policy, self._request.group_by, self._request.dataset, self._key
            )
            for name, split in self._answer.splits.items()
            if name not in small and name not in unread
        }
        outcomes = self._releases.outcomes(pieces, again)
        splits = {
            name: split
            if name in unread
            else _no_split(split, small[name])
            if name in small
            else self._split(name, split, pieces[name], outcomes)
            for name, split in self._answer.splits.items()
        }
        return FromSite(
            splits=splits,
            released=min(self._releases.stale.values(), default=None),
            withheld=self._answer.withheld,
        )

    def _small(self, unread: Container[str]) -> tuple[dict[str, Withheld], set[str]]:
        """Returns the splits of too few rows: why each is withheld, and those to give again.

        With noise, there are none: it is decided on the noised number of rows.
        """
        small: dict[str, Withheld] = {}
        again: set[str] = set()
        least = self._policy.minimum_rows
        for name, split in self._answer.splits.items():
            if name in unread or self._policy.noise is not None:
                continue
            if not (split.rows is None or split.rows < least):
                continue
            reason: str | None = f"no rows < minimum {least}"
            if split.rows is not None:
                reason = self._releases.too_few(name, split.rows)
            if reason is None:
                again.add(name)
            else:
                small[name] = Withheld(what="everything", reason=reason)
        return small, again

    def _split(
        self, name: str, split: SplitFromSite, pieces: Pieces, outcomes: Mapping[str, Outcome]
    ) -> SplitFromSite:
        """Returns what of a split may leave."""
        rows = outcomes[pieces.rows.key]
        count = None if rows.release is None else rows.release.rows
        least = self._policy.minimum_rows
        if rows.release is not None and (count is None or count < least):  # with noise
            shown = "no" if count is None else f"{count:.0f}"
            few = Withheld(what="everything", reason=f"{shown} rows < minimum {least}")
            return _no_split(split, few)
        withheld = list(split.withheld)
        if rows.release is None:
            withheld.append(Withheld(what="rows", reason=rows.reason))
        if name in self._releases.stale:
            why = (
                f"fewer than {self._policy.changed_rows} rows have changed since the release of "
                f"{words_of(self._releases.stale[name])}, which is given again"
            )
            withheld.append(Withheld(what="newer numbers", reason=why))
        if split.co_moments is not None and pieces.pairs is None:
            why = "they are not released with noise"
            withheld.append(Withheld(what="correlations", reason=why))
        columns = {
            column: ColumnAtSite(
                kind=given.kind, summary=self._summary(given, pieces.columns.get(column), outcomes)
            )
            for column, given in split.columns.items()
        }
        groups = self._groups(split, pieces, outcomes, withheld)
        pairs = None
        if pieces.pairs is not None:
            of_pairs = outcomes[pieces.pairs.key]
            if of_pairs.release is None:
                withheld.append(Withheld(what="correlations", reason=of_pairs.reason))
            else:
                pairs = of_pairs.release.co_moments
        return SplitFromSite(
            rows=count, columns=columns, co_moments=pairs, groups=groups, withheld=withheld
        )

    def _summary(
        self, given: ColumnAtSite, piece: Piece | None, outcomes: Mapping[str, Outcome]
    ) -> Summary:
        if piece is None:
            if given.summary.withheld:
                return Summary(withheld=given.summary.withheld)
            return nothing("the site did not compute how many values there are")
        outcome = outcomes[piece.key]
        if outcome.release is None or outcome.release.summary is None:
            what = "everything" if self._request.kind == "describe" else "histogram"
            return Summary(withheld=[Withheld(what=what, reason=outcome.reason)])
        return outcome.release.summary

    def _groups(
        self,
        split: SplitFromSite,
        pieces: Pieces,
        outcomes: Mapping[str, Outcome],
        withheld: list[Withheld],
    ) -> dict[str, SplitFromSite]:
        """Returns what of the groups may leave, and adds lines on what may not."""
        if pieces.group_rows is None:
            return {}
        outcome = outcomes[pieces.group_rows.key]
        if outcome.release is None:
            withheld.append(Withheld(what="groups", reason=outcome.reason))
            return {}
        withheld += outcome.release.withheld
        if any(group.co_moments is not None for group in split.groups.values()):
            withheld.append(
                Withheld(what="correlations by group", reason="they never leave a site")
            )
        groups = {}
        for group, rows in outcome.release.group_rows.items():
            columns = {}
            for column, piece in pieces.by_group.items():
                of_column = outcomes[piece.key]
                if of_column.release is None:
                    summary = nothing(of_column.reason)
                elif group in of_column.release.groups:
                    summary = of_column.release.groups[group]
                else:
                    summary = nothing("not released for this group then")
                kind = split.columns[column].kind
                columns[column] = ColumnAtSite(kind=kind, summary=summary)
            groups[group] = SplitFromSite(rows=rows, columns=columns)
        return groups
