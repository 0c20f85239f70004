"""Whether a piece of an answer is released again, anew or not at all, and what that costs."""

import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.changes import is_between
from prefect_federated.statistics.history import Since, begin, since, subject_key
from prefect_federated.statistics.ledger import Account, Mark, Release, Spent, Subject
from prefect_federated.statistics.noise import Mechanism
from prefect_federated.statistics.pieces import Now, Piece, Pieces

_QUESTIONS = 100
"""So many releases of one state of a subject are kept; before, they can be computed again."""


@dataclass
class Outcome:
    """What became of a piece: a release, or why there is none."""

    release: Release | None = None
    reason: str = ""


class Releases:
    """What one site task releases of a dataset, with the ledger's account of it in hand.

    Args:
        account: The dataset's, which is added to.
        policy: The site's.
        source: Of random numbers.
        job: The job's id.
        now: The time.
    """

    def __init__(
        self,
        account: Account,
        policy: PrivacyPolicy,
        source: random.Random,
        job: str,
        now: datetime,
    ) -> None:
        self.stale: dict[str, datetime] = {}  # split -> time of the earlier release given again
        self._account = account
        self._policy = policy
        self._source = source
        self._job = job
        self._now = now

    def too_few(self, split: str, rows: float) -> str | None:
        """Returns why nothing is released of a split of fewer rows than the minimum.

        The first answer has their number. With another number, it would tell a single row, so there
        is none once another was told or released; while few rows have changed since a release, that
        is given again.

        Returns:
            The reason; None if earlier releases are to be given again.
        """
        policy = self._policy
        now = Mark(counts={"rows": rows})
        released = self._account.subjects.get(subject_key(split, "rows"), Subject())
        if since(released, {"": now}, policy.changed_rows) is Since.TOO_LITTLE:
            return None
        told = self._account.subjects.setdefault(subject_key(split, "too few rows"), Subject())
        if {"": now} not in told.states and len(told.states) < 2:  # two: no number is told again
            told.states.append({"": now})
            told.since = self._now
        known = [state[""].counts["rows"] for state in [*released.states, *told.states]]
        if not rows and all(not is_between(number, policy.changed_rows) for number in known):
            return "the table is empty: check the path, query or split"
        if policy.changed_rows > 1 and any(number != rows for number in known):
            return f"fewer than {policy.minimum_rows} rows"
        return f"{rows:.0f} rows < minimum {policy.minimum_rows}"

    def outcomes(
        self, pieces: Mapping[str, Pieces], small: Container[str] = ()
    ) -> dict[str, Outcome]:
        """Returns what becomes of each piece, by its subject's key.

        Args:
            pieces: Split -> pieces.
            small: Splits of too few rows, of which only earlier releases are given.
        """
        outcomes: dict[str, Outcome] = {}
        anew: dict[str, tuple[Piece, Since]] = {}
        for split, of_split in pieces.items():
            for piece in of_split:
                what = piece.since(self._account, self._policy.changed_rows)
                subject = self._account.subjects.get(piece.key, Subject())
                kept = subject.releases.get(piece.question)
                if split in small and kept is None:
                    of_rows = self._account.subjects[of_split.rows.key]
                    outcomes[piece.key] = Outcome(None, self._not_asked_then(of_rows))
                elif split in small and kept is not None:
                    outcomes[piece.key] = Outcome(kept)
                    self.stale[split] = min(kept.at, self.stale.get(split, kept.at))
                elif what is Since.ENOUGH or (what is Since.NOTHING and kept is None):
                    anew[piece.key] = piece, what
                elif kept is not None:
                    outcomes[piece.key] = Outcome(kept)
                    if what is Since.TOO_LITTLE:
                        self.stale[split] = min(kept.at, self.stale.get(split, kept.at))
                else:
                    outcomes[piece.key] = Outcome(None, self._not_asked_then(subject))
        names = sum(piece.name_tables for piece, _ in anew.values())
        mechanism, refusal = self._mechanism([piece for piece, _ in anew.values()], names)
        if refusal is not None:
            return outcomes | {key: Outcome(None, refusal) for key in anew}
        for of_split in pieces.values():
            for piece in of_split:
                if piece.key not in anew:
                    continue
                subject = begin(
                    self._account, piece.key, piece.state, anew[piece.key][1], self._now
                )
                groups = _named_groups(of_split, outcomes)
                now = Now(self._account, subject, Release(at=self._now), mechanism, names, groups)
                release = piece.compute(now)
                for oldest in list(subject.releases)[: -_QUESTIONS + 1]:
                    del subject.releases[oldest]
                subject.releases[piece.question] = release
                outcomes[piece.key] = Outcome(release)
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
            Spent(at=self._now, job=self._job, epsilon=noise.epsilon, delta=delta)
        )
        numbers = sum(piece.numbers for piece in anew)
        kind = noise.mechanism
        return Mechanism(kind, noise.epsilon, noise.delta, numbers, self._source), None

    def _not_asked_then(self, subject: Subject) -> str:
        then = (
            "an earlier release"
            if subject.since is None
            else f"the release of {words_of(subject.since)}"
        )
        return (
            f"fewer than {self._policy.changed_rows} rows have changed since {then}, and this was "
            "not asked then"
        )


def _named_groups(pieces: Pieces, outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    if pieces.group_rows is None:
        return ()
    release = outcomes[pieces.group_rows.key].release if pieces.group_rows.key in outcomes else None
    return () if release is None else tuple(sorted(release.group_rows))


def words_of(at: datetime) -> str:
    """Returns a time as a person reads it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
