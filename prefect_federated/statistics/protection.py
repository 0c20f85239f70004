"""What may leave a site of its exact statistics: `protect`, the one way out.

Everything that is withheld leaves a line that says why. What each rule stops, and what none of them
does, is in docs/privacy-of-statistics.md.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.errors import LedgerDamaged
from prefect_federated.statistics.columns import nothing
from prefect_federated.statistics.disclosure import of_columns
from prefect_federated.statistics.history import Since, begin
from prefect_federated.statistics.ledger import Account, Ledger, Release, Spent, Subject
from prefect_federated.statistics.noise import Mechanism
from prefect_federated.statistics.request import Request
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    FromSite,
    SplitFromSite,
    Summary,
    Withheld,
)
from prefect_federated.statistics.splits import Now, Piece, Pieces, pieces_of

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
    try:
        key = ledger.key()
        with ledger.account(request.dataset) as account:
            return _Protection(answer, policy, request, account, key, source, now()).released()
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


@dataclass
class _Outcome:
    """What became of a piece: a release, or why there is none."""

    release: Release | None = None
    reason: str = ""


class _Protection:
    """One answer on its way out."""

    def __init__(
        self,
        answer: FromSite,
        policy: PrivacyPolicy,
        request: Request,
        account: Account,
        key: bytes,
        source: random.Random,
        now: datetime,
    ) -> None:
        self._answer = answer
        self._policy = policy
        self._request = request
        self._account = account
        self._key = key
        self._source = source
        self._now = now
        self._stale: dict[str, datetime] = {}

    def released(self) -> FromSite:
        """Returns what may leave."""
        small = {
            name: line
            for name, split in self._answer.splits.items()
            if (line := self._too_few(split.rows)) is not None and self._policy.noise is None
        }
        pieces = {
            name: pieces_of(
                name, split, self._policy, self._request.group_by, self._request.dataset, self._key
            )
            for name, split in self._answer.splits.items()
            if name not in small
        }
        outcomes = self._outcomes(pieces)
        splits = {
            name: _no_split(split, small[name])
            if name in small
            else self._split(name, split, pieces[name], outcomes)
            for name, split in self._answer.splits.items()
        }
        return FromSite(
            splits=splits,
            released=min(self._stale.values(), default=None),
            withheld=self._answer.withheld,
        )

    def _too_few(self, rows: float | None) -> Withheld | None:
        least = self._policy.minimum_rows
        if rows is None or rows < least:
            shown = "no" if rows is None else f"{rows:.0f}"
            return Withheld(what="everything", reason=f"{shown} rows < minimum {least}")
        return None

    def _outcomes(self, pieces: Mapping[str, Pieces]) -> dict[str, _Outcome]:
        """Answers each piece: again what was released, or anew, or not at all."""
        outcomes: dict[str, _Outcome] = {}
        anew: dict[str, tuple[Piece, Since]] = {}
        for split, of_split in pieces.items():
            for piece in of_split:
                what = piece.since(self._account, self._policy.changed_rows)
                subject = self._account.subjects.get(piece.key, Subject())
                kept = subject.releases.get(piece.question)
                if what is Since.ENOUGH or (what is Since.NOTHING and kept is None):
                    anew[piece.key] = piece, what
                elif kept is not None:
                    outcomes[piece.key] = _Outcome(kept)
                    if what is Since.TOO_LITTLE:
                        self._stale[split] = min(kept.at, self._stale.get(split, kept.at))
                else:
                    outcomes[piece.key] = _Outcome(None, self._not_asked_then(subject))
        names = sum(piece.name_tables for piece, _ in anew.values())
        mechanism, refusal = self._mechanism([piece for piece, _ in anew.values()], names)
        if refusal is not None:
            return outcomes | {key: _Outcome(None, refusal) for key in anew}
        for of_split in pieces.values():
            for piece in of_split:
                if piece.key not in anew:
                    continue
                subject = begin(
                    self._account, piece.key, piece.state, anew[piece.key][1], self._now
                )
                groups = _named_groups(of_split, outcomes)
                now = Now(self._account, subject, Release(at=self._now), mechanism, names, groups)
                subject.releases[piece.question] = release = piece.compute(now)
                outcomes[piece.key] = _Outcome(release)
        return outcomes

    def _mechanism(self, anew: Sequence[Piece], names: int) -> tuple[Mechanism | None, str | None]:
        """Spends the budget for new numbers; returns what gives them noise, or a refusal."""
        noise = self._policy.noise
        if noise is None or not anew:
            return None, None
        delta = noise.delta if noise.mechanism == "gaussian" or names else 0.0
        refusal = self._account.refusal(noise, delta, self._now)
        if refusal is not None:
            return None, refusal
        self._account.spent.append(
            Spent(at=self._now, job=self._request.job, epsilon=noise.epsilon, delta=delta)
        )
        numbers = sum(piece.numbers for piece in anew)
        kind = noise.mechanism
        return Mechanism(kind, noise.epsilon, noise.delta, numbers, self._source), None

    def _not_asked_then(self, subject: Subject) -> str:
        then = (
            "an earlier release"
            if subject.since is None
            else f"the release of {_time(subject.since)}"
        )
        return (
            f"fewer than {self._policy.changed_rows} rows have changed since {then}, and this was "
            "not asked then"
        )

    def _split(
        self, name: str, split: SplitFromSite, pieces: Pieces, outcomes: Mapping[str, _Outcome]
    ) -> SplitFromSite:
        """Returns what of a split may leave."""
        rows = outcomes[pieces.rows.key]
        count = None if rows.release is None else rows.release.rows
        few = self._too_few(count) if rows.release is not None else None
        if few is not None:  # with noise
            return _no_split(split, few)
        withheld = list(split.withheld)
        if rows.release is None:
            withheld.append(Withheld(what="rows", reason=rows.reason))
        if name in self._stale:
            why = (
                f"fewer than {self._policy.changed_rows} rows have changed since the release of "
                f"{_time(self._stale[name])}, which is given again"
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
        self, given: ColumnAtSite, piece: Piece | None, outcomes: Mapping[str, _Outcome]
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
        outcomes: Mapping[str, _Outcome],
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


def _named_groups(pieces: Pieces, outcomes: Mapping[str, _Outcome]) -> tuple[str, ...]:
    if pieces.group_rows is None:
        return ()
    release = outcomes[pieces.group_rows.key].release if pieces.group_rows.key in outcomes else None
    return () if release is None else tuple(sorted(release.group_rows))


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
