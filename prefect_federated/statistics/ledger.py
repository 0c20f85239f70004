"""What a site has released of its datasets and spent of their budgets, kept across jobs.

    site.data / statistics-ledger / index.json    secret key, and the datasets that have a file
                                    NAME.json     one dataset: what was spent and released
                                    lock

Nothing of it is ever sent. A file is replaced whole, after it is on disk, and one process or thread
at a time has a dataset: a kill at any moment leaves the ledger as before or as after. What is
damaged or gone is never begun anew: `LedgerDamaged` says what to do.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_federated.datasets.policy import Noise
from prefect_federated.errors import LedgerDamaged
from prefect_federated.statistics.schema import CoMoments, Summary, Withheld

FOLDER = "statistics-ledger"
"""The ledger's name in the site's own data folder."""

Numbers = dict[str, float]
"""Exact numbers by name; only the site sees them."""

_Model = TypeVar("_Model", bound=BaseModel)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Spent(_Entry):
    """Epsilon and delta that one site task has spent."""

    at: datetime
    job: str
    epsilon: float = Field(ge=0)
    delta: float = Field(ge=0)


class Mark(_Entry):
    """Exact numbers by which a change of the data is seen.

    Args:
        counts: Each a number of rows, so that it differs by no more than the rows changed.
        tables: Numbers of rows that together are those of a column, by category or by bin.
        values: All other numbers.
    """

    counts: Numbers = {}
    tables: dict[str, Numbers] = {}
    values: Numbers = {}


class Release(_Entry):
    """What was released to one question, of a column, of its groups or of a split.

    Args:
        at: When its numbers were computed.
        rows: Of the split.
        summary: Of the column.
        group_rows: Rows of each group that is released.
        groups: The column in each group.
        co_moments: Of the split.
        group_co_moments: In each group.
        withheld: What of it is withheld for the whole split.
    """

    at: datetime
    rows: float | None = None
    summary: Summary | None = None
    group_rows: dict[str, float] = {}
    groups: dict[str, Summary] = {}
    co_moments: CoMoments | None = None
    group_co_moments: dict[str, CoMoments] = {}
    withheld: list[Withheld] = []


class Subject(_Entry):
    """What is asked about: a column of a split, the groups of one, or the split as a whole.

    Args:
        states: The states of the data of which something was released, the last one last; for
            groups by name, "" for all rows.
        since: When the last one was first seen.
        releases: What was released of the last state, by the question.
        cells: Intervals whose counts were released of the last state: of each of the two edges its
            value, and how many values lie below it.
    """

    states: list[dict[str, Mark]] = []
    since: datetime | None = None
    releases: dict[str, Release] = {}
    cells: list[tuple[tuple[float, ...], tuple[float, ...]]] = []


class Account(_Entry):
    """All that is kept of one dataset."""

    dataset: str
    spent: list[Spent] = []
    subjects: dict[str, Subject] = {}

    def used(self, noise: Noise, now: datetime) -> tuple[float, float]:
        """Returns the epsilon and the delta that count against the budget."""
        since = datetime.min.replace(tzinfo=UTC)
        if noise.period_days is not None:
            since = now - timedelta(days=noise.period_days)
        counted = [entry for entry in self.spent if entry.at > since]
        return sum(entry.epsilon for entry in counted), sum(entry.delta for entry in counted)

    def refusal(self, noise: Noise, delta: float, now: datetime) -> str | None:
        """Returns why a site task may not spend its epsilon and `delta`; None if it may."""
        epsilon_used, delta_used = self.used(noise, now)
        for used, asked, budget, name in (
            (epsilon_used, noise.epsilon, noise.budget_epsilon, "epsilon"),
            (delta_used, delta, noise.budget_delta, "delta"),
        ):
            if used + asked > budget * (1 + 1e-9):
                return f"budget: {used:g} of {budget:g} {name} spent, this job asks for {asked:g}"
        return None


class _Index(_Entry):
    key: str = Field(pattern="^[0-9a-f]{64}$")
    files: dict[str, str] = {}


class Ledger:
    """The ledger of one site.

    Args:
        folder: `site.data / FOLDER`; made when it is first written to, readable by its owner only.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / FOLDER)
    >>> with ledger.account("heart") as account:
    ...     account.spent.append(Spent(at=datetime.now(UTC), job="a", epsilon=1, delta=0))
    >>> with ledger.account("heart") as account:
    ...     account.spent[0].epsilon
    1.0
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def account(self, dataset: str) -> Iterator[Account]:
        """Gives the account of a dataset to one user at a time, and writes it at the end.

        What was changed counts once the block is left; if it raises, nothing does.

        Raises:
            LedgerDamaged: a file is not as it was written, or is gone.
            OSError: the folder cannot be written to.
        """
        self._make()
        with self._locked():
            index = self._index()
            name = index.files.get(dataset, _file_name(dataset))
            if dataset not in index.files and not (self.folder / name).exists():
                account = Account(dataset=dataset)
            else:
                account = self._read(name, Account)
                if account.dataset != dataset:
                    raise self._damaged(name, f"it is that of dataset {account.dataset!r}")
            yield account
            self._write(name, account)
            if dataset not in index.files:
                index.files[dataset] = name
                self._write("index.json", index)

    def key(self) -> bytes:
        """Returns the site's secret from which noise that must not average out is drawn.

        Raises:
            LedgerDamaged: as for `account`.
            OSError: as for `account`.
        """
        self._make()
        with self._locked():
            return bytes.fromhex(self._index().key)

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "a", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
            yield

    def _index(self) -> _Index:
        if (self.folder / "index.json").exists():
            return self._read("index.json", _Index)
        left = sorted(file.name for file in self.folder.glob("*.json"))
        if left:
            raise self._damaged("index.json", f"it is gone, and {', '.join(left)} is there")
        index = _Index(key=secrets.token_hex(32))
        self._write("index.json", index)
        return index

    def _read(self, name: str, kind: type[_Model]) -> _Model:
        try:
            digest, _, body = (self.folder / name).read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                raise self._damaged(name, "its content is not what was written")
            return kind.model_validate_json(body)
        except FileNotFoundError:
            raise self._damaged(name, "it is gone") from None
        except ValidationError as error:
            where = error.errors()[0]["loc"]
            raise self._damaged(name, f"{'.'.join(map(str, where))} is not readable") from None

    def _write(self, name: str, content: BaseModel) -> None:
        body = content.model_dump_json(exclude_defaults=True).encode()
        whole = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if (self.folder / name).exists() and (self.folder / name).read_bytes() == whole:
            return
        written = self.folder / f"{name}.new"
        with open(written, "wb", opener=_private) as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        written.replace(self.folder / name)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name outlives a power cut, too
        finally:
            os.close(folder)

    def _damaged(self, name: str, how: str) -> LedgerDamaged:
        return LedgerDamaged(
            f"the site's ledger of released statistics, {name} in its folder {FOLDER!r}, is "
            f"damaged: {how}. Put a backup of the folder back. Without one, remove the folder: "
            "budgets then start anew, and what changed since an earlier release can be computed."
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _file_name(dataset: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", dataset)[:40]
    return f"{readable}-{hashlib.sha256(dataset.encode()).hexdigest()[:16]}.json"
