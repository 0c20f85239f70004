"""The controller's side of a job as a pure state machine: no I/O, no threads, no tensors touched.

Who is attached, who was asked, who answered; deadlines, quorum, late results, epochs, sites that
attach again, what is sent again, which update may come next. The clock and the ways to the sites
are handed in: real connections (`tls_server`), virtual sites (`inproc`) and a simulated network
(`benchmarks.protocol`) drive the same code. Calls must not overlap; `hub` sees to that.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefect_federated.errors import JobEnded, QuorumNotReached
from prefect_federated.messages import JsonValue, Note, Reply, SiteFailure, Update
from prefect_federated.transport.calls import CallRecord, CallTerms, Task
from prefect_federated.transport.deliveries import Deliveries
from prefect_federated.transport.notes import jsonable
from prefect_federated.transport.room import Asked, Stage
from prefect_federated.transport.roster import Roster, SiteRecord
from prefect_federated.transport.signals import (
    Attachment,
    Hello,
    Moment,
    SendAck,
    SendClose,
    SendEnd,
    SendNotice,
    SendTask,
    Sink,
    SiteNotes,
)
from prefect_federated.wire import Incoming

_LEAST_FACTOR = 1e-9  # below it an update is too late to count


class Exchange:
    """The sites and the open calls of one attempt (epoch) of one job.

    Args:
        job: The job's id.
        epoch: This attempt's number, larger than that of any attempt before.
        sites: The sites that may attach.
        clock: Monotonic seconds.
        max_failures: Failures in a row after which a site is left out; None for never.
        updates_in_memory: Updates that may be in memory beside the aggregator's sum.
        notify: Told of each moment.
    """

    def __init__(
        self,
        job: str,
        epoch: int,
        sites: Iterable[str],
        clock: Callable[[], float],
        max_failures: int | None = None,
        updates_in_memory: int = 2,
        notify: Callable[[Moment], None] = lambda moment: None,
    ) -> None:
        self.job = job
        self.epoch = epoch
        self.roster = Roster(job, epoch, clock, max_failures, notify)
        self.sites = self.roster.sites
        self.calls: dict[str, CallRecord] = {}  # the open ones
        self.deliveries = Deliveries(self.sites, updates_in_memory, self._no_memory)
        self.ended: SendEnd | None = None
        self._clock = clock
        self._notify = notify
        self._numbers = 0
        self._look_at: float | None = None  # when a deadline may pass; None: find out
        for name in sites:
            self.roster.admit(name)

    # What arrives from sites

    def attach(self, hello: Hello, send: Sink) -> Attachment:
        """Lets a site in and gives it its open tasks, except those that it says it holds.

        A second attachment of a site replaces the first.

        Raises:
            AttachRefused: not a site of this job, or another protocol version.
            JobEnded: the job is over.
            StaleController: the site has seen a newer attempt of the job.
        """
        site = self.roster.check(hello)
        if self.ended is not None:
            raise JobEnded(self.ended.outcome, self.ended.reason)
        was_lost = site.kinds is not None and site.attachment is None
        if site.attachment is not None:
            site.attachment.send(SendEnd("replaced", "the site has attached again"))
            self._break(site)
        wanted = tuple(task for task in hello.holding if task in site.open)
        for task in hello.holding:
            if task not in wanted and task not in site.answered:
                self.roster.refuse(hello.site, task)
        site.attachment = Attachment(hello.site, send, self.epoch, wanted)
        site.left_at, site.given_up = None, None
        site.kinds, site.labels = hello.kinds, dict(hello.labels)
        for asked in list(site.open.values()):
            if asked.stage is Stage.ARRIVED:
                continue
            if asked.task in wanted:
                asked.stage = Stage.SENT if asked.stage is Stage.QUEUED else asked.stage
            else:
                self._lost(site, asked)
        self._send_next(site, hello.receiving)
        if site.left_out is not None:
            send(SendNotice(site.left_out))
        if was_lost:
            self._notify(Moment("site_back", hello.site, self.roster.round))
        self.deliveries.grant()
        return site.attachment

    def detach(self, attachment: Attachment) -> None:
        """Notes that a connection is gone; the site's open tasks wait for it to come back."""
        site = self.sites[attachment.site]
        if site.attachment is attachment:
            self._break(site)
            site.attachment, site.left_at, self._look_at = None, self._clock(), None
            if self.ended is None:
                self._notify(Moment("site_lost", attachment.site, self.roster.round))
            self.deliveries.grant()

    def _break(self, site: SiteRecord) -> None:
        for asked in site.open.values():
            if asked.stage is Stage.RECEIVING:
                asked.stage = Stage.BROKEN
            elif asked.stage is Stage.OFFERED:
                asked.stage = Stage.SENT
                self.deliveries.free(asked)

    def _lost(self, site: SiteRecord, asked: Asked) -> None:
        """Has a site asked again for what it lost; what was late already is not worth it."""
        self.deliveries.free(asked)
        asked.stage = Stage.QUEUED
        call = asked.call
        if call is None or call.id != asked.task:
            del site.open[asked.task]
        if call is not None and call.id != asked.task:
            self._open(call, asked.site)

    def find(self, attachment: Attachment, task: str, is_failure: bool = False) -> Asked | None:
        """Returns the open task that a result is for; None, and refused, if there is none."""
        site = self.sites[attachment.site]
        if site.attachment is not attachment:
            return None  # a connection that was replaced: it comes again over the new one
        if task in site.open:
            return site.open[task]
        self.roster.refuse(attachment.site, task, attachment, is_failure)
        return None

    def offer(self, attachment: Attachment, asked: Asked, incoming: Incoming) -> None:
        """Notes that a site has an update; it is told to send it when there is room."""
        if asked.stage in (Stage.ARRIVED, Stage.RECEIVING):
            return  # it came twice
        if (
            asked.call is None and asked.terms.late == 0
        ):  # on trial, and too late: but it answers again
            del self.sites[asked.site].open[asked.task]
            self.roster.refuse(asked.site, asked.task, attachment)
            self._send_next(self.sites[asked.site])
            return
        kept = asked.incoming
        if asked.stage is Stage.BROKEN and kept is not None and kept.head == incoming.head:
            self.deliveries.resume(asked, attachment, kept)
            return
        self.deliveries.offer(asked, incoming)
        self._send_next(self.sites[asked.site])
        self.deliveries.grant()

    def take_small(self, asked: Asked, incoming: Incoming) -> None:
        """Notes that an update is coming that was small enough to be sent unasked."""
        self.deliveries.free(asked)
        asked.stage, asked.incoming = Stage.RECEIVING, incoming

    def note(self, attachment: Attachment, notes: SiteNotes) -> None:
        """Tells what a site says of a task that it has, before its update is there."""
        site = self.sites[attachment.site]
        asked = site.open.get(notes.id) if site.attachment is attachment else None
        if asked is None or asked.stage in (Stage.QUEUED, Stage.ARRIVED):
            return
        dropped = notes.dropped
        for note in notes.notes:
            self._notify(_said(asked, note, dropped))
            dropped = 0

    def settle(self, site: str, task: str, reply: Reply, blame: bool = True) -> bool:
        """Takes the answer to a site task; whether it counts.

        Args:
            site: The site.
            task: The task's id.
            reply: Its update or failure.
            blame: Whether a failure counts towards `max_failures`.
        """
        record = self.sites[site]
        asked = record.open.get(task)
        if asked is None:
            return False
        call, now = asked.call, self._clock()
        if isinstance(reply, Update):
            asked.stage = Stage.ARRIVED
            self.roster.take_back(record, site)
            record.weight = reply.weight
            if call is None and asked.terms.late > 0:
                if (oldest := self.deliveries.keep(asked, reply)) is not None:
                    self._cancel(oldest, "no call took it")
                    self.roster.refuse(oldest.site, oldest.task)
                self._send_next(record)
                self.deliveries.grant()
                return True
            if call is not None and (behind := call.terms.round - asked.terms.round) > 0:
                reply = _late(reply, asked.terms.late**behind, behind)
        if isinstance(reply, SiteFailure):
            self.deliveries.free(asked)
            if blame:
                self.roster.count_failure(record, site, reply.reason)
        self.deliveries.forget(asked)
        del record.open[task]
        record.answered.append(task)
        if call is not None:
            had_quorum = call.quorum_at is not None
            call.settle(site, reply, now)
            if call.quorum_at is not None and not had_quorum:
                self._look_at = None
            if isinstance(reply, Update):
                self._notify(_received(call, site))
            self._ask_next(call)
        self._send_next(record)
        self.deliveries.grant()
        return call is not None

    def fail(self, site: str, task: str | None, reason: str) -> None:
        """Notes that a site's task failed; with no task, all of its open tasks."""
        for name in [task] if task is not None else list(self.sites[site].open):
            self.settle(site, name, SiteFailure(site, reason))

    # What the controller does

    def call(
        self,
        kind: str,
        make_task: Callable[[str], Task],
        sites: Sequence[str],
        terms: CallTerms,
        trials: Sequence[str] = (),
    ) -> CallRecord:
        """Asks sites for a site task.

        A site that still works on a late task of this kind is not asked again: its update counts
        here when it comes.
        """
        asked = tuple(dict.fromkeys(sites))
        if not isinstance(terms.quorum, float) and asked and terms.quorum > len(asked):
            raise QuorumNotReached(
                f"round {terms.round}, {kind}: the quorum is {terms.quorum}, and only {len(asked)} "
                f"sites can be asked now: {', '.join(asked)}."
            )
        self._numbers += 1
        self.roster.round = terms.round or self.roster.round
        number = f"{self.epoch}.{self._numbers}"
        extra = tuple(site for site in dict.fromkeys(trials) if site not in asked)
        call = CallRecord(number, kind, make_task(number), asked, extra, terms, self._clock())
        self.calls[number] = call
        self.roster.count_call((*asked, *extra))
        self._look_at = None
        self._ask_next(call)
        self.deliveries.grant()
        return call

    def _ask_next(self, call: CallRecord) -> None:
        for name in call.next_to_ask():
            late = self._late_of(name, call)
            if late is None:
                self._open(call, name)
                self._send_next(self.sites[name])
                continue
            late.call = call
            self.deliveries.adopt(late)
            if late.reply is not None:
                self.settle(name, late.task, late.reply)

    def _open(self, call: CallRecord, site: str) -> None:
        asked = Asked(site, call.id, call, call.kind, call.terms, self._clock())
        record = self.sites[site]
        record.open[call.id] = asked
        if record.attachment is None:
            self._look_at = None

    def _late_of(self, name: str, call: CallRecord) -> Asked | None:
        """Returns the late task of this kind at which the site still is, if its update will do."""
        for asked in list(self.sites[name].open.values()):
            if asked.call is None and asked.kind == call.kind:
                is_alike = asked.terms.expect == call.terms.expect
                if is_alike and asked.terms.late > 0 and call.terms.late > 0:
                    return asked
                self._cancel(asked, "it is asked for anew")
        return None

    def _cancel(self, asked: Asked, reason: str) -> None:
        site = self.sites[asked.site]
        del site.open[asked.task]
        site.answered.append(asked.task)
        self.deliveries.free(asked)
        if site.attachment is not None:
            site.attachment.send(SendClose(asked.task, reason))

    def _send_next(self, site: SiteRecord, receiving: Mapping[str, int] | None = None) -> None:
        """Sends a site its next task, unless it is at one: it holds one model at a time."""
        if site.attachment is None or any(a.stage is Stage.SENT for a in site.open.values()):
            return
        for asked in site.open.values():
            call = asked.call
            if asked.stage is Stage.QUEUED and call is not None:
                assert asked.task == call.id
                asked.stage = Stage.SENT
                encoded, message = call.task.encoded, call.task.message
                offset = (receiving or {}).get(asked.task, 0)
                if not 0 < offset <= encoded.payload_bytes:
                    offset = 0
                call.reports[asked.site].bytes_sent += encoded.size_bytes - offset
                wanted = _IsOpen(site.open, asked.task)
                site.attachment.send(SendTask(asked.task, encoded, message, offset, wanted))
                return

    def next_reply(self, call: CallRecord) -> Reply | None:
        """Returns the reply that arrived first and was not read yet, if there is one."""
        return call.arrived.popleft() if call.arrived else None

    def consumed(self, call: CallRecord, site: str) -> None:
        """Notes that the controller has done with a site's update: there is room for another."""
        for asked in list(self.deliveries.room.held):
            if asked.call is call and asked.site == site and asked.stage is Stage.ARRIVED:
                self.deliveries.free(asked)
        self.deliveries.grant()

    def wait_for(self, calls: Iterable[CallRecord]) -> None:
        """Notes that a thread waits for calls: their updates have precedence."""
        self.deliveries.room.awaited.update(calls)
        self.deliveries.grant()

    def waited(self, calls: Iterable[CallRecord]) -> None:
        """Notes that a thread does not wait for calls any more."""
        self.deliveries.room.awaited.subtract(calls)
        self.deliveries.room.awaited += Counter()  # drops what nobody waits for
        self.deliveries.grant()

    def is_done(self, call: CallRecord) -> bool:
        """Whether nothing more is to be waited for: all sites have answered, or offer to."""
        for site in call.waiting:
            if site in call.unasked:
                return False
            asked = self._asked_of(call, site)
            if asked is not None and asked.stage not in (Stage.OFFERED, Stage.RECEIVING):
                return False
        return True

    def _asked_of(self, call: CallRecord, site: str) -> Asked | None:
        return next((a for a in self.sites[site].open.values() if a.call is call), None)

    def look(self) -> float | None:
        """Applies all deadlines that have passed; returns when (clock) the next one may."""
        now = self._clock()
        stalled_at = self.deliveries.take_back_stalled(now)
        if self._look_at is None or now >= self._look_at:
            nexts = [self._check_deadlines(call, now) for call in list(self.calls.values())]
            self._look_at = min((time for time in nexts if time is not None), default=None)
        times = [time for time in (self._look_at, stalled_at) if time is not None]
        return min(times, default=None)

    def _check_deadlines(self, call: CallRecord, now: float) -> float | None:
        deadline = call.deadline
        if now >= deadline.at:
            call.unasked.clear()
            late = dict.fromkeys(call.waiting, deadline.reason)
            self._drop(call, late, call.terms.late > 0, blame=deadline.is_failure)
            return None
        next_look = deadline.at
        for name in list(call.waiting):
            site = self.sites[name]
            asked = self._asked_of(call, name)
            if site.given_up is not None:
                self._drop(call, {name: site.given_up})
            elif site.left_at is not None and asked is not None:
                lost_at = max(site.left_at, asked.since) + call.terms.lost_after_s
                if now >= lost_at:
                    lost = f"no connection for {call.terms.lost_after_s:g} s"
                    self._drop(call, {name: lost})
                else:
                    next_look = min(next_look, lost_at)
        return next_look if call.waiting else None

    def _drop(
        self,
        call: CallRecord,
        sites: Mapping[str, str],
        keep_late: bool = False,
        blame: bool = True,
    ) -> None:
        """Counts sites as failed, each with a reason; what they still send may count later."""
        for name, reason in sites.items():
            record, asked = self.sites[name], self._asked_of(call, name)
            is_here = record.attachment is not None
            if asked is None:
                reason, is_to_blame = f"not asked: {reason}", False
            elif asked.stage is Stage.QUEUED and is_here:
                reason, is_to_blame = f"it was at another task: {reason}", False
            elif asked.stage in (Stage.OFFERED, Stage.RECEIVING):
                reason, is_to_blame = f"its update was not received in time: {reason}", False
            else:
                is_to_blame = blame
            if asked is None:
                call.settle(name, SiteFailure(name, reason), self._clock())
            elif keep_late and asked.stage is not Stage.QUEUED and is_here:
                asked.call = None
                if is_to_blame:
                    self.roster.count_failure(record, name, reason)
                call.settle(name, SiteFailure(name, reason), self._clock())
            else:
                self.settle(name, asked.task, SiteFailure(name, reason), is_to_blame)
                if record.attachment is not None:
                    record.attachment.send(SendClose(asked.task, reason))

    def close(self, call: CallRecord, reason: str) -> None:
        """Ends a call: what has not answered counts as failed; unread updates are dropped."""
        if call.is_closed:
            return
        call.is_closed = True
        call.unasked.clear()
        self._drop(call, dict.fromkeys(tuple(call.waiting), reason), blame=False)
        for name in call.reports:  # sites on trial may still answer, to be taken back
            if (asked := self._asked_of(call, name)) is not None:
                asked.call = None
                if asked.stage is Stage.QUEUED:
                    del self.sites[name].open[asked.task]
        self.calls.pop(call.id, None)
        call.arrived.clear()
        call.task = call.task.without_tensors()
        for asked in list(self.deliveries.room.held):
            if asked.call is call:
                self.deliveries.free(asked)
        self.deliveries.grant()

    def give_up(self, site: str, reason: str) -> None:
        """Stops waiting for a site until it attaches again: its open tasks fail for this reason."""
        self.sites[site].given_up, self._look_at = reason, None
        self.fail(site, None, reason)

    def end(self, outcome: str, reason: str) -> None:
        """Tells all sites that the job is over, and lets none attach any more."""
        if self.ended is None:
            self.ended = SendEnd(outcome, reason)
            for site in self.sites.values():
                if site.attachment is not None:
                    site.attachment.send(self.ended)

    # Inside

    def _no_memory(self, asked: Asked, attachment: Attachment, reason: str) -> None:
        self.settle(asked.site, asked.task, SiteFailure(asked.site, reason), blame=False)
        attachment.send(SendAck(asked.task, reason))


@dataclass(frozen=True, slots=True)
class _IsOpen:
    open: Mapping[str, Asked]
    task: str

    def __call__(self) -> bool:
        return self.task in self.open


def _late(update: Update, factor: float, behind: int) -> Reply:
    """Returns an update that came some rounds late, with less weight."""
    if factor < _LEAST_FACTOR:
        return SiteFailure(update.site, f"its update came {behind} rounds late")
    share = update.metrics_weight
    return replace(
        update,
        weight=update.weight * factor,
        metrics_weight=None if share is None else share * factor,
        staleness=behind,
    )


def _said(asked: Asked, note: Note, dropped: int) -> Moment:
    name = "metrics_logged"
    detail: dict[str, JsonValue] = {"kind": asked.kind}
    if note.progress is not None:
        name = "progressed"
        done, total, unit = note.progress
        detail |= {"done": done, "total": total, "unit": unit}
    else:
        detail |= {"metrics": jsonable(note.metrics), "step": note.step, "time": note.time}
    if dropped:
        detail["dropped"] = dropped
    return Moment(name, asked.site, asked.terms.round, detail)


def _received(call: CallRecord, site: str) -> Moment:
    report = call.reports[site]
    detail: dict[str, JsonValue] = {
        "kind": call.kind,
        "seconds": round(report.seconds, 3),
        "bytes": report.bytes_received,
        "metrics": dict(report.metrics or {}),
    }
    return Moment("update_received", site, call.terms.round, detail)
