"""A piece of an answer: what is released or withheld on its own, such as a column of a split."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_federated.statistics.history import Since, since
from prefect_federated.statistics.ledger import Account, Mark, Release, Subject
from prefect_federated.statistics.noise import Mechanism


@dataclass(frozen=True)
class Now:
    """What a piece computes its release with.

    Args:
        account: The dataset's.
        subject: What is asked about, in the state of now.
        release: An empty one, with its time.
        mechanism: Gives noise; None if there is none.
        name_tables: How many tables of names are released together.
        groups: The groups that are released, for what is computed by group.
    """

    account: Account
    subject: Subject
    release: Release
    mechanism: Mechanism | None = None
    name_tables: int = 0
    groups: Sequence[str] = ()

    def extremes(self, key: str) -> tuple[float | None, float | None]:
        """Returns the exact minimum and maximum of a column, also of an earlier site task."""
        values = self.account.subjects[key].states[-1][""].values
        return values.get("min"), values.get("max")


@dataclass(frozen=True)
class Piece:
    """One thing that is released or withheld.

    Args:
        key: Of its subject in the ledger.
        question: Its name among the subject's releases.
        state: Exact numbers, by which a change is seen; none if it changes with others only.
        after: Pieces without whose change it does not change, and that it must be as new as.
        numbers: How many numbers get noise, where there is noise.
        name_tables: How many of them are tables of names.
        compute: Computes the release.
    """

    key: str
    question: str
    state: Mapping[str, Mark]
    compute: Callable[[Now], Release]
    after: Sequence["Piece"] = ()
    numbers: int = 1
    name_tables: int = 0

    def since(self, account: Account, enough: int) -> Since:
        """Returns what has happened to the data since the releases before."""
        subject = account.subjects.get(self.key, Subject())
        others = [piece.since(account, enough) for piece in self.after]
        if Since.TOO_LITTLE in others:
            return Since.TOO_LITTLE
        if self.state:
            return since(subject, self.state, enough)
        kept = subject.releases.get(self.question)
        if kept is None or Since.ENOUGH in others:
            return Since.ENOUGH
        began = [account.subjects[piece.key].since for piece in self.after]
        is_older = any(at is not None and kept.at < at for at in began)
        return Since.ENOUGH if is_older else Since.NOTHING


@dataclass(frozen=True)
class Pieces:
    """The pieces of one split."""

    rows: Piece
    group_rows: Piece | None
    columns: Mapping[str, Piece]
    by_group: Mapping[str, Piece]
    pairs: Piece | None

    def __iter__(self) -> Iterator[Piece]:
        """Yields them in an order in which what others need comes first."""
        yield self.rows
        if self.group_rows is not None:
            yield self.group_rows
        yield from self.columns.values()
        yield from self.by_group.values()
        if self.pairs is not None:
            yield self.pairs
