"""What a site may answer now, given what it has released of the same data before.

Two releases between which one row was added tell that row. So a column's numbers are released anew
only when enough rows have changed since each earlier release; until then the earlier release is
given again, and what was not asked then is withheld.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from enum import Enum

from prefect_federated.datasets.policy import PrivacyPolicy
from prefect_federated.statistics.changes import is_between, joined, rows_changed
from prefect_federated.statistics.ledger import Account, Mark, Subject

_STATES = 1_000
"""So many states of the data are compared with; with 20 rows changed between two, 20,000 rows."""

_SHORT = 64
"""Numbers of categories or bins of older states are kept up to so many in a table."""

State = Mapping[str, Mark]
"""Exact numbers of all rows, "", or of each group by its name."""


class Since(Enum):
    """What has happened to the data since the releases before."""

    NOTHING = "nothing"
    ENOUGH = "enough rows have changed, or nothing was released"
    TOO_LITTLE = "some rows have changed, but too few"


def subject_key(split: str, *what: str) -> str:
    """Returns under what name the ledger keeps a subject."""
    return json.dumps([split, *what])


def rules_of(policy: PrivacyPolicy) -> str:
    """Returns a short name of a policy: a release under another one is not given again."""
    rules = policy.model_dump_json(exclude={"allowed_columns", "forbidden_columns"})
    return hashlib.sha256(rules.encode()).hexdigest()[:32]


def question(rules: str, *details: object) -> str:
    """Returns a short name of what is asked of a subject, which differs if the answer may.

    Args:
        rules: The policy's short name.
        details: What else matters, such as edges. Which other columns are asked for does not: to
            ask for others gives the same numbers of a column again.
    """
    return hashlib.sha256(json.dumps([rules, details]).encode()).hexdigest()[:32]


def since(subject: Subject, now: State, enough: int) -> Since:
    """Returns what has happened to the data since the subject's releases.

    Args:
        subject: What is asked about.
        now: Its exact numbers.
        enough: Rows that make new numbers.
    """
    if not subject.states:
        return Since.ENOUGH
    if not any(_changes(subject.states[-1], now)):
        return Since.NOTHING
    for state in subject.states:
        if any(is_between(changed, enough) for changed in _changes(state, now)):
            return Since.TOO_LITTLE
    return Since.ENOUGH


def begin(account: Account, key: str, now: State, what: Since, at: datetime) -> Subject:
    """Returns the subject in the state of now, with what was released of that state.

    Args:
        account: The dataset's.
        key: Of the subject.
        now: Its exact numbers.
        what: Has happened since the releases before.
        at: The time.
    """
    subject = account.subjects.setdefault(key, Subject())
    if what is Since.NOTHING:
        last = subject.states[-1]
        together = {name: joined(last.get(name, Mark()), mark) for name, mark in now.items()}
        subject.states[-1] = {**last, **together}
        return subject
    subject.since, subject.releases, subject.cells = at, {}, []
    if not now:  # it changes with others only
        return subject
    older = [{name: _short(mark) for name, mark in state.items()} for state in subject.states]
    subject.states = [*older, dict(now)][-_STATES:]
    return subject


def _changes(before: State, now: State) -> list[float]:
    nobody = Mark(counts={"rows": 0.0})
    return [
        rows_changed(before.get(name, nobody), now.get(name, nobody))
        for name in before.keys() | now.keys()
    ]


def _short(mark: Mark) -> Mark:
    tables = {name: table for name, table in mark.tables.items() if len(table) <= _SHORT}
    return Mark(counts=mark.counts, tables=tables, values=mark.values)
