"""Virtual sites that a job's controller runs itself: the simulator's transport.

Hub, calls, executors and aggregators are those of a real federation; a runner (`batches`) runs the
site tasks, on threads, in processes or on a cluster. A site that is not asked costs nothing: it has
no thread, no folder and no object but its place in the hub.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from prefect_federated.messages import JsonValue, Message
from prefect_federated.transport.batches import Batch, BatchLost, Runner, SiteLost
from prefect_federated.transport.handover import Handover
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Attachment, Hello, Outgoing, SendTask, SiteNotes

log = logging.getLogger("prefect_federated.simulator")

Labels = Mapping[str, Mapping[str, str]]


class Watcher(Protocol):
    """Is told of each virtual site that is asked, and of each that has answered."""

    def asked(self, kind: str, round: int) -> None:
        """A site was asked."""
        ...

    def answered(self, kind: str, round: int, answer: Mapping[str, JsonValue]) -> None:
        """A site has answered: its message's header, which says `error` if it failed."""
        ...


class Unwatched:
    """Watches nothing."""

    def asked(self, kind: str, round: int) -> None:
        """Does nothing."""

    def answered(self, kind: str, round: int, answer: Mapping[str, JsonValue]) -> None:
        """Does nothing."""


class InprocEndpoint:
    """Attaches virtual sites to a hub and runs their site tasks. Use as a context manager.

    Args:
        hub: The job's hub.
        kinds: Kinds of site task that the sites can do.
        runner: Where their site tasks run.
        labels: Labels by site.
        watcher: Is told of what is asked and answered.
    """

    def __init__(
        self,
        hub: Hub,
        kinds: Sequence[str],
        runner: Runner,
        labels: Labels | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._hub = hub
        self._kinds = tuple(kinds)
        self._runner = runner
        self._labels = labels or {}
        self._watcher = watcher or Unwatched()
        self._attachments: dict[str, Attachment] = {}
        self._handover = Handover(hub)
        self._queue = _Queue(hub, runner, self._handover)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "InprocEndpoint":
        self._handover.__enter__()
        for name in self._hub.sites:
            hello = Hello(name, self._kinds, labels=self._labels.get(name, {}))
            sink = partial(self._take, name)
            self._attachments[name] = self._hub.attach(hello, sink)
        for lane in range(self._runner.lanes):
            thread = threading.Thread(
                target=self._run_lane, args=(lane,), name=f"sites-{lane}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.close()
        self._runner.close()
        for thread in self._threads:
            thread.join()
        self._handover.__exit__()

    def _take(self, site: str, item: Outgoing) -> None:
        self._handover.hear(site, item)
        if isinstance(item, SendTask):
            self._watcher.asked(*kind_and_round(item.message))
            self._queue.put(_Asked(site, item.message, item.is_wanted))

    def _run_lane(self, lane: int) -> None:
        while (batch := self._queue.take()) is not None:
            left = dict.fromkeys(batch.sites)
            try:
                answer = partial(self._answer, batch, left)
                self._runner.run(lane, batch, answer, self._told)
            except SiteLost as lost:
                site, *others = left
                self._fail(batch, [site], str(lost))
                self._queue.put_first(batch, others)
            except Exception as error:
                if not isinstance(error, BatchLost):
                    log.exception("a batch of %d sites failed", len(batch.sites))
                self._fail(batch, list(left), str(error) or type(error).__name__)

    def _fail(self, batch: Batch, sites: Sequence[str], reason: str) -> None:
        for site in sites:
            self._watcher.answered(*kind_and_round(batch.task), {"error": reason})
            self._hub.fail(site, batch.id, reason)

    def _told(self, site: str, notes: SiteNotes) -> None:
        self._hub.note(self._attachments[site], notes)

    def _answer(self, batch: Batch, left: dict[str, None], site: str, message: Message) -> None:
        self._handover.hand_in(self._attachments[site], message)
        left.pop(site)
        self._watcher.answered(*kind_and_round(batch.task), message.header)


@dataclass(frozen=True)
class _Asked:
    site: str
    task: Message
    is_wanted: Callable[[], bool] = lambda: True

    @property
    def id(self) -> str:
        return str(self.task.header["id"])


class _Queue:
    """Site tasks that wait for a lane; whoever has the hub's lock may use them."""

    def __init__(self, hub: Hub, runner: Runner, handover: Handover) -> None:
        self._hub = hub
        self._lanes = runner.lanes
        self._batches_a_lane = runner.batches_a_lane
        self._handover = handover
        self._waiting: deque[_Asked] = deque()
        self._is_closed = False
        self._sizes: dict[str, int] = {}  # of the batches, by site task

    def put(self, asked: _Asked) -> None:
        """Adds a site task; called by the hub."""
        with self._hub.changed:
            self._waiting.append(asked)
            self._hub.changed.notify_all()

    def put_first(self, batch: Batch, sites: Sequence[str]) -> None:
        """Puts the rest of a batch back, before all others."""
        with self._hub.changed:
            self._waiting.extendleft(_Asked(site, batch.task) for site in reversed(sites))
            self._hub.changed.notify_all()

    def take(self) -> Batch | None:
        """Waits for site tasks and returns a batch of them; None when the queue is closed."""
        with self._hub.changed:  # a call that is just being made asks all its sites first
            while not self._is_closed:
                taken = self._take_needed() if self._handover.is_full else self._take_first()
                if taken:
                    return Batch(taken[0].task, tuple(asked.site for asked in taken))
                self._hub.changed.wait()
        return None

    def _take_first(self) -> list[_Asked]:
        """Takes a batch of the oldest site tasks."""
        taken: list[_Asked] = []
        while self._waiting and len(taken) < self._size(self._waiting[0].id):
            if taken and self._waiting[0].id != taken[0].id:
                break
            asked = self._waiting.popleft()
            if asked.is_wanted():
                taken.append(asked)
        return taken

    def _take_needed(self) -> list[_Asked]:
        """Takes a batch of site tasks for which the controller waits, those it asked for first."""
        needed = [
            asked
            for asked in self._waiting
            if asked.is_wanted() and self._handover.may_begin(asked.site)
        ]
        if not needed:
            return []
        awaited = {record.id for record in self._hub.awaited}
        first = next((asked for asked in needed if asked.id in awaited), needed[0])
        alike = [asked for asked in needed if asked.id == first.id]
        taken = alike[: self._size(first.id)]
        gone = {id(asked) for asked in taken}
        self._waiting = deque(asked for asked in self._waiting if id(asked) not in gone)
        return taken

    def _size(self, task: str) -> int:
        """Returns how many sites a batch of this task has; the same for all of one call."""
        if self._batches_a_lane is None:
            return 1
        if task not in self._sizes:
            count = sum(asked.id == task for asked in self._waiting)
            self._sizes = {task: math.ceil(count / (self._lanes * self._batches_a_lane))}
        return self._sizes[task]

    def close(self) -> None:
        """Makes `take` return None from now on."""
        with self._hub.changed:
            self._is_closed = True
            self._hub.changed.notify_all()


def kind_and_round(message: Message) -> tuple[str, int]:
    """Returns a site task's kind and its round, 0 outside rounds."""
    number = message.header.get("round")
    return str(message.header.get("kind")), number if isinstance(number, int) else 0
