"""Virtual sites whose executor is a loop: each has a thread of its own, and asks for its tasks."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from prefect_federated.errors import ConfigurationError, FederatedError, JobEnded
from prefect_federated.executors import LoadedExecutor, ReceivedTask, Site, serve
from prefect_federated.messages import Message, Update
from prefect_federated.transport.batches import VirtualSites
from prefect_federated.transport.handover import Handover
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import Labels, Unwatched, Watcher, kind_and_round
from prefect_federated.transport.notepad import Courier, Notepad
from prefect_federated.transport.signals import (
    Attachment,
    Hello,
    Outgoing,
    SendEnd,
    SendTask,
    SiteNotes,
)
from prefect_federated.transport.site_filters import SiteFilters, Visit
from prefect_federated.transport.updates import failure_of, message_of

MOST_LOOPS = 512
"""Each loop has a thread; with more of them, they mostly keep each other waiting."""
_END_S = 10.0

log = logging.getLogger("prefect_federated.simulator")


class LoopEndpoint:
    """Runs a loop for each virtual site of a hub, some at a time. Use as a context manager.

    Args:
        hub: The job's hub.
        sites: The virtual sites.
        executor: Their loop.
        threads: Loops that work on a task at the same time.
        labels: Labels by site.
        watcher: Is told of what is asked and answered.

    Raises:
        ConfigurationError: there are too many sites for one loop each.
    """

    def __init__(
        self,
        hub: Hub,
        sites: VirtualSites,
        executor: LoadedExecutor,
        threads: int,
        labels: Labels | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        if len(hub.sites) > MOST_LOOPS:
            raise ConfigurationError(
                f"executor {executor.path!r} is a loop, each of which needs a thread of its own: "
                f"{len(hub.sites):,} sites are too many for one machine, at most {MOST_LOOPS}. "
                "Write it in the function form, `@executor def train(model, site)`, which has no "
                "such bound."
            )
        self._hub = hub
        self._sites = sites
        self._executor = executor
        self._filters = SiteFilters(sites.filters)
        self._turns = threading.Semaphore(threads)
        self._labels = labels or {}
        self._watcher = watcher or Unwatched()
        self._threads: list[threading.Thread] = []
        self._handover = Handover(hub)
        self._courier = Courier()

    def __enter__(self) -> "LoopEndpoint":
        self._handover.__enter__()
        for name in self._hub.sites:
            thread = threading.Thread(
                target=self._run, args=(name,), name=f"loop-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the loops to end, in bounded time: nothing can end a loop that hangs."""
        for _waiting in self._threads:
            self._turns.release()  # who waits for a turn is to see that the job is over
        deadline = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := [thread.name for thread in self._threads if thread.is_alive()]:
            log.error(
                "%d loops have not ended %g s after the job and are left behind: %s",
                len(hanging), _END_S, ", ".join(hanging[:10]),
            )  # fmt: skip
        self._courier.close()
        self._handover.__exit__()

    def _run(self, name: str) -> None:
        site = self._sites.site(name)
        hello = Hello(name, (), labels=self._labels.get(name, {}))
        link = _LoopLink(
            self._hub, hello, site, self._filters, self._turns, self._watcher, self._handover,
            self._courier,
        )  # fmt: skip
        try:
            serve(self._executor, site, link)
        except JobEnded:
            pass
        except Exception as error:
            log.exception("site %s: the executor's loop failed", name)
            reason = str(failure_of("", error).header["error"])
            link.detach()
            self._hub.give_up(name, f"its loop ended: {reason}")
        finally:
            link.end_turn()


class _LoopLink:
    """The link of one loop: gives it its tasks, hands its updates to the hub."""

    def __init__(
        self,
        hub: Hub,
        hello: Hello,
        site: Site,
        filters: SiteFilters,
        turns: threading.Semaphore,
        watcher: Watcher,
        handover: Handover,
        courier: Courier,
    ) -> None:
        self._hub = hub
        self._courier = courier
        self._pad = Notepad("")
        self._handover = handover
        self._hello = hello
        self._site = site
        self._filters = filters
        self._visits: dict[str, Visit] = {}
        self._turns = turns
        self._watcher = watcher
        self._tasks: queue.SimpleQueue[Outgoing] = queue.SimpleQueue()
        self._attachment: Attachment | None = None
        self._is_over = False
        self._has_turn = False
        self._task = Message({})

    def attach(self, kinds: Sequence[str]) -> None:
        hello = Hello(self._hello.site, tuple(kinds), labels=self._hello.labels)
        self._attachment = self._hub.attach(hello, self._hear)

    def _hear(self, item: Outgoing) -> None:
        self._handover.hear(self._site.name, item)
        self._is_over = self._is_over or isinstance(item, SendEnd)
        if isinstance(item, SendTask | SendEnd):
            with contextlib.suppress(queue.Empty):
                self._tasks.get_nowait()  # nobody waits for that one any more
            self._tasks.put(item)

    def detach(self) -> None:
        """Takes the site out, if it was in."""
        if self._attachment is not None:
            self._hub.detach(self._attachment)

    def receive(self) -> ReceivedTask:
        self.end_turn()
        while True:
            item = self._tasks.get()
            if isinstance(item, SendEnd):
                raise JobEnded(item.outcome, item.reason)
            if isinstance(item, SendTask):
                self._watcher.asked(*kind_and_round(item.message))
                if not self._begin_turn(item):
                    continue
                try:
                    received, visit = self._filters.entering(self._site, item.message)
                except FederatedError as error:
                    self._send(item.message, failure_of(item.id, error))
                    self.end_turn()
                    continue
                self._visits = {item.id: visit}
                self._task = item.message
                self._pad = Notepad(item.id, self._courier, self._tell)
                return replace(received, stream=self._pad)

    def reply(self, task: ReceivedTask, update: Update) -> None:
        try:
            visit = self._visits[task.id]
            message = self._filters.leaving(message_of(task.id, update), visit)
        except FederatedError as error:
            self.fail(task, error)
            return
        self._send(self._task, message)

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        self._send(self._task, failure_of(task.id, error))

    def _send(self, task: Message, message: Message) -> None:
        assert self._attachment is not None
        for last in self._pad.close():
            self._tell(last)
        self._handover.hand_in(self._attachment, message)
        self._watcher.answered(*kind_and_round(task), message.header)

    def _tell(self, notes: SiteNotes) -> bool:
        assert self._attachment is not None
        self._hub.note(self._attachment, notes)
        return True

    def _begin_turn(self, task: SendTask) -> bool:
        """Waits until the loop may do a task; False if nobody waits for the task any more."""
        is_off = False

        def may_go_on() -> bool:
            nonlocal is_off
            is_off = self._is_over or not task.is_wanted()
            return is_off or self._handover.may_begin(self._site.name)

        while True:
            with self._hub.changed:
                self._hub.changed.wait_for(may_go_on)
            self._turns.acquire()
            self._has_turn = True
            with self._hub.changed:  # much may have happened until it was this loop's turn
                if may_go_on() and not is_off:
                    return True
            self.end_turn()
            if is_off:
                return False

    def end_turn(self) -> None:
        """Lets another loop run, if this one was running."""
        if self._has_turn:
            self._turns.release()
            self._has_turn = False
