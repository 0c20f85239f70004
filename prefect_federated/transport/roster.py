"""The sites of a job: who is here, what each can do, who is left out, which results were refused.

Part of the pure state machine (`exchange`): no I/O, no threads; the clock is handed in.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prefect_federated.errors import AttachRefused, StaleController
from prefect_federated.transport.room import Asked
from prefect_federated.transport.signals import (
    Attachment,
    Hello,
    Moment,
    Refusal,
    SendAck,
    SendNotice,
)
from prefect_federated.wire import PROTOCOL_VERSION

_REFUSALS_KEPT = 1_000
_ANSWERED_KEPT = 16  # ids of a site's last answered tasks, to tell a duplicate from a stray result


@dataclass
class SiteRecord:
    """What the controller knows of one site."""

    attachment: Attachment | None = None
    left_at: float | None = None
    given_up: str | None = None
    kinds: tuple[str, ...] | None = None  # unknown until it attaches for the first time
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None
    open: dict[str, Asked] = field(default_factory=dict)
    answered: deque[str] = field(default_factory=lambda: deque(maxlen=_ANSWERED_KEPT))
    failures: int = 0  # in a row
    left_out: str | None = None
    trial_in: int = 0  # calls until a site that is left out is tried again


class Roster:
    """The sites of one attempt (epoch) of one job.

    Args:
        job: The job's id.
        epoch: This attempt's number.
        clock: Monotonic seconds.
        max_failures: Failures in a row after which a site is left out; None for never.
        notify: Told of each moment.
    """

    def __init__(
        self,
        job: str,
        epoch: int,
        clock: Callable[[], float],
        max_failures: int | None,
        notify: Callable[[Moment], None],
    ) -> None:
        self.sites: dict[str, SiteRecord] = {}
        self.refusals: deque[Refusal] = deque(maxlen=_REFUSALS_KEPT)
        self.round = 0
        self._job = job
        self._epoch = epoch
        self._clock = clock
        self._max_failures = max_failures
        self._notify = notify
        self._left_out: set[str] = set()

    def admit(self, site: str) -> None:
        """Lets a site take part from now on."""
        self.sites.setdefault(site, SiteRecord(left_at=self._clock()))

    def check(self, hello: Hello) -> SiteRecord:
        """Returns the site that introduces itself.

        Raises:
            AttachRefused: not a site of this job, or another protocol version.
            StaleController: the site has seen a newer attempt of the job.
        """
        site = self.sites.get(hello.site)
        if site is None:
            raise AttachRefused(
                f"site {hello.site!r} is not one of this job's sites ({', '.join(self.sites)})."
            )
        if hello.protocol != PROTOCOL_VERSION:
            older = "site" if hello.protocol < PROTOCOL_VERSION else "server"
            raise AttachRefused(
                f"site {hello.site!r} speaks protocol version {hello.protocol}, the server "
                f"{PROTOCOL_VERSION}; upgrade prefect-federated at the {older}."
            )
        if hello.epoch > self._epoch:
            # A site's word alone stops no job: Prefect knows which attempt is the newest.
            raise StaleController(
                f"site {hello.site!r} has seen attempt {hello.epoch} of job {self._job}; this is "
                f"attempt {self._epoch}."
            )
        return site

    def refuse(
        self,
        site: str,
        task: str,
        attachment: Attachment | None = None,
        is_failure: bool = False,
    ) -> None:
        """Records a result that does not count, and tells its site."""
        epoch = task.partition(".")[0]
        record = self.sites[site]
        if task in record.answered:
            reason = "it was answered already"
        elif epoch != str(self._epoch):
            reason = f"it is of attempt {epoch[:20]}, this is attempt {self._epoch}"
        else:
            reason = "nobody waits for this task any more"
        self.refusals.append(Refusal(site, task, reason))
        is_ours = epoch == str(self._epoch) and not is_failure
        if record.left_out is not None and self._max_failures is not None and is_ours:
            self.take_back(record, site)
            record.failures = self._max_failures - 1
        if attachment is not None:
            attachment.send(SendAck(task, reason))

    def take_back(self, record: SiteRecord, site: str) -> None:
        """Notes that a site answers; one that was left out takes part again."""
        record.failures = 0
        if record.left_out is not None:
            record.left_out = None
            self._left_out.discard(site)
            self._notify(Moment("site_back", site, self.round, {"reason": "it answers again"}))

    def count_failure(self, record: SiteRecord, site: str, reason: str) -> None:
        """Notes that a site failed; one that fails too often in a row is left out, and told so."""
        record.failures += 1
        most = self._max_failures
        if most is None or record.failures < most or record.left_out is not None:
            return
        record.left_out = (
            f"left out after {record.failures} failures in a row, the last: {reason.rstrip('.')}. "
            "It is tried again from time to time, and taken back when it answers."
        )
        record.trial_in = most
        self._left_out.add(site)
        self._notify(Moment("site_lost", site, self.round, {"reason": record.left_out}))
        if record.attachment is not None:
            record.attachment.send(SendNotice(record.left_out))

    def count_call(self, asked: Iterable[str]) -> None:
        """Notes that a call is made: those left out come nearer to their next trial."""
        for name in self._left_out:
            self.sites[name].trial_in -= 1
        for name in self._left_out.intersection(asked):
            self.sites[name].trial_in = self._max_failures or 0

    def trials(self, kind: str) -> list[str]:
        """Returns the sites that are left out and are to be tried again now."""
        return [
            name
            for name in sorted(self._left_out)
            if (site := self.sites[name]).trial_in <= 0
            and site.attachment is not None
            and not site.open
            and kind in (site.kinds or ())
        ]
