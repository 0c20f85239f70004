"""One call of a controller to its sites: its terms, who has answered, when it is over.

Pure bookkeeping without a clock of its own. `exchange` keeps the calls of a job, `waiting` makes
them something that a flow can wait for.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prefect_federated.errors import QuorumNotReached
from prefect_federated.messages import JsonValue, Message, Reply, SiteFailure, Update
from prefect_federated.wire import Encoded, TensorSpec


@dataclass(frozen=True, slots=True)
class CallTerms:
    """What a call waits for.

    Args:
        round: The round, counted from 1; 0 outside rounds.
        quorum: Updates needed: a count (int) or a share of the sites asked (float, 0 to 1, rounded
            up).
        timeout_s: Seconds after which sites that have not answered count as failed.
        lost_after_s: Seconds without a connection after which a site counts as failed.
        expect: Dtype and shape of each tensor that an update must have; None for any.
        grace_s: Once the quorum is there, seconds for which the other sites are waited for; None
            for as long as `timeout_s`.
        in_flight: Sites that are asked at the same time; None for all.
        late: Factor on an update's weight for each round that it comes late: an update that arrives
            after its call has closed is taken by the next call of the same kind. 0 drops it.
        max_reply_bytes: Payload of an answer at most; None for what the limits allow.
    """

    round: int = 0
    quorum: int | float = 1.0
    timeout_s: float = 600.0
    lost_after_s: float = 30.0
    expect: dict[str, TensorSpec] | None = None
    grace_s: float | None = None
    in_flight: int | None = None
    late: float = 0.0
    max_reply_bytes: int | None = None

    def updates_needed(self, asked: int) -> int:
        """Returns the number of updates that make the quorum among `asked` sites."""
        if isinstance(self.quorum, float):
            return max(1, math.ceil(round(self.quorum * asked, 9)))
        return self.quorum


@dataclass(slots=True)
class SiteReport:
    """What became of one site in one call, for reports."""

    site: str
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    reason: str | None = None
    metrics: dict[str, float] | None = None
    metrics_weight: float = 0.0
    staleness: int = 0
    filtered: list[JsonValue] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Task:
    """What a call asks of each site, encoded once for all of them."""

    encoded: Encoded
    message: Message

    def without_tensors(self) -> "Task":
        """Returns what is left to tell of a task when nobody needs its tensors any more."""
        return Task(Encoded(self.encoded.head, ()), Message(self.message.header))


class Deadline(NamedTuple):
    """When sites that have not answered are not waited for any more, and what is said of them."""

    at: float
    reason: str
    is_failure: bool = True  # which counts towards `max_failures`


class CallRecord:
    """One call: which sites it counts, who has answered, what waits to be read.

    Args:
        number: The id that its site tasks have.
        kind: The site task.
        task: What it asks.
        sites: Sites that count towards the quorum and are waited for.
        trials: Sites that are asked too, but are neither counted nor waited for.
        terms: What it waits for.
        now: When it begins, on the exchange's clock.
    """

    def __init__(
        self,
        number: str,
        kind: str,
        task: Task,
        sites: Sequence[str],
        trials: Sequence[str],
        terms: CallTerms,
        now: float,
    ) -> None:
        self.id = number
        self.kind = kind
        self.task = task
        self.sites = tuple(sites)
        self.terms = terms
        self.started = now
        self.reports = {site: SiteReport(site) for site in (*sites, *trials)}
        self.arrived: deque[Reply] = deque()
        self.waiting = dict.fromkeys(sites)  # an ordered set
        self.unasked = dict.fromkeys((*sites, *trials))  # likewise
        self.updates = 0  # that have come, those of sites on trial included
        self.quorum_at = now if self.updates_needed == 0 else None
        self.is_closed = False
        self.cancelled: str | None = None
        self._at_work: set[str] = set()

    def next_to_ask(self) -> Iterable[str]:
        """Yields the sites that may be asked now; each is noted as asked."""
        most = self.terms.in_flight or len(self.reports)
        while self.unasked and len(self._at_work) < most and not self.is_closed:
            site = next(iter(self.unasked))
            del self.unasked[site]
            self._at_work.add(site)
            yield site

    def settle(self, site: str, reply: Reply, now: float) -> None:
        """Takes a site's update or failure."""
        report = self.reports[site]
        report.seconds = now - self.started
        if isinstance(reply, SiteFailure):
            report.reason = reply.reason
        else:
            weight = reply.metrics_weight
            report.metrics = dict(reply.metrics)
            report.metrics_weight = reply.weight if weight is None else weight
            report.staleness = reply.staleness
            self.updates += 1
        counted = site in self.waiting
        self.waiting.pop(site, None)
        self.unasked.pop(site, None)
        self._at_work.discard(site)
        if isinstance(reply, Update) or counted:
            self.arrived.append(reply)
        if self.quorum_at is None and self.updates >= self.updates_needed:
            self.quorum_at = now

    @property
    def updates_needed(self) -> int:
        """Updates that make the quorum."""
        return self.terms.updates_needed(len(self.sites))

    @property
    def deadline(self) -> "Deadline":
        """When sites that have not answered count as failed, and what is said of them then."""
        end = self.started + self.terms.timeout_s
        if self.quorum_at is not None and self.terms.grace_s is not None:
            grace_end = self.quorum_at + self.terms.grace_s
            if grace_end < end:
                grace = f"no answer within {self.terms.grace_s:g} s after the quorum was there"
                return Deadline(grace_end, grace, is_failure=False)
        return Deadline(end, f"no answer within {self.terms.timeout_s:g} s")

    def check_quorum(self) -> None:
        """Raises `QuorumNotReached`, with each missing site and its reason, if it is."""
        if self.cancelled is not None:
            raise QuorumNotReached(
                f"round {self.terms.round}, {self.kind}: the call was ended before all had "
                f"answered: {self.cancelled}."
            )
        if self.updates >= self.updates_needed:
            return
        reasons = "; ".join(
            f"{site}: {self.reports[site].reason}"
            for site in self.sites
            if self.reports[site].metrics is None
        )
        raise QuorumNotReached(
            f"round {self.terms.round}, {self.kind}: {self.updates} of {len(self.reports)} sites "
            f"answered, the quorum is {self.updates_needed}. Missing: {reasons.rstrip('.')}."
        )


def header_of(
    number: str, kind: str, job: str, epoch: int, terms: CallTerms, more: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Returns the header of a call's site tasks."""
    return {
        **more, "id": number, "kind": kind, "job": job, "epoch": epoch, "round": terms.round,
    }  # fmt: skip
