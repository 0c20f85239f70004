"""Virtual sites in the controller's own process: the simulator's transport.

Tensors pass by reference, as read-only views; nothing is encoded. Hub, calls, executors and
aggregators are those of a real federation.
"""

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prefect_federated.errors import JobEnded, ProtocolError
from prefect_federated.executors import LoadedExecutor, ReceivedTask, Site, run_task, serve
from prefect_federated.messages import JsonValue, Message, Tensor, Update
from prefect_federated.transport.hub import (
    Attachment,
    Hello,
    Hub,
    Outgoing,
    SendEnd,
    SendTask,
    Sink,
)
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import TensorSpec, specs_of

log = logging.getLogger("prefect_federated.simulator")


class InprocEndpoint:
    """Runs the site tasks of virtual sites on a few threads. Use as a context manager.

    Args:
        hub: The job's hub.
        sites: The virtual sites by name.
        executor: What they run.
        threads: Site tasks that run at the same time.
    """

    def __init__(
        self, hub: Hub, sites: Mapping[str, Site], executor: LoadedExecutor, threads: int
    ) -> None:
        self._hub = hub
        self._sites = sites
        self._executor = executor
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="site")
        self._turns = threading.Semaphore(threads)
        self._loops: list[threading.Thread] = []

    def __enter__(self) -> "InprocEndpoint":
        for site in self._sites.values():
            if self._executor.loop is not None:
                self._start_loop(site, _LoopLink(self._hub, site.name, self._turns))
            else:
                dispatch = _Dispatch(self._pool, self._executor, site, _Link(self._hub, site.name))
                dispatch.link.sink = dispatch
                dispatch.link.attach(tuple(self._executor.functions))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._loops:
            thread.join()

    def _start_loop(self, site: Site, link: "_LoopLink") -> None:
        def run() -> None:
            try:
                serve(self._executor, site, link)
            except JobEnded:
                pass
            except Exception as error:
                log.exception("site %s: the executor's loop failed", site.name)
                reason = str(failure_of("", error).header["error"])
                link.detach()
                self._hub.give_up(site.name, f"its loop ended: {reason}")
            finally:
                link.end_turn()

        thread = threading.Thread(target=run, name=f"loop-{site.name}", daemon=True)
        self._loops.append(thread)
        thread.start()


@dataclass(frozen=True)
class _Dispatch:
    """Takes what the hub sends to one virtual site and runs its tasks in the pool."""

    pool: ThreadPoolExecutor
    executor: LoadedExecutor
    site: Site
    link: "_Link"

    def __call__(self, item: Outgoing) -> None:
        if isinstance(item, SendTask):
            self.pool.submit(self._run, _received(item))

    def _run(self, task: ReceivedTask) -> None:
        try:
            run_task(self.executor, self.site, self.link, task)
        except Exception:
            log.exception("site %s: the update could not be handed over", self.site.name)
            self.link.hub.fail(self.site.name, task.id, "internal error, see the log")


class _Link:
    """A virtual site's link: hands updates to the hub."""

    def __init__(self, hub: Hub, site: str) -> None:
        self.hub = hub
        self.site = site
        self.sink: Sink = lambda item: None
        self._attachment: Attachment | None = None

    def attach(self, kinds: Sequence[str]) -> None:
        self._attachment = self.hub.attach(Hello(self.site, tuple(kinds)), self.sink)

    def detach(self) -> None:
        """Takes the site out, if it was in."""
        if self._attachment is not None:
            self.hub.detach(self._attachment)

    def receive(self) -> ReceivedTask:
        raise JobEnded("over", "this site's tasks come one by one")

    def reply(self, task: ReceivedTask, update: Update) -> None:
        try:
            self._send(message_of(task.id, update))
        except ProtocolError as error:
            self.fail(task, error)

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        self._send(failure_of(task.id, error))

    def _send(self, message: Message) -> None:
        assert self._attachment is not None
        offer = _LocalOffer(message, specs_of(message.tensors))
        self.hub.receive(self._attachment, offer, lambda: None)


class _LoopLink(_Link):
    """The link of a virtual site whose executor is a loop: it asks for its tasks."""

    def __init__(self, hub: Hub, site: str, turns: threading.Semaphore) -> None:
        super().__init__(hub, site)
        self.tasks: queue.SimpleQueue[Outgoing] = queue.SimpleQueue()
        self.sink = self.tasks.put
        self._turns = turns
        self._has_turn = False

    def receive(self) -> ReceivedTask:
        self.end_turn()
        while True:
            item = self.tasks.get()
            if isinstance(item, SendEnd):
                raise JobEnded(item.outcome, item.reason)
            if isinstance(item, SendTask):
                self._turns.acquire()
                self._has_turn = True
                return _received(item)

    def end_turn(self) -> None:
        """Lets another loop run, if this one was running."""
        if self._has_turn:
            self._turns.release()
            self._has_turn = False


def _received(item: SendTask) -> ReceivedTask:
    header = item.message.header
    number, config = header.get("round"), header.get("config")
    return ReceivedTask(
        id=item.id,
        kind=str(header.get("kind")),
        round=number if isinstance(number, int) else 0,
        model={name: _read_only(array) for name, array in item.message.tensors.items()},
        config=config if isinstance(config, dict) else {},
    )


def _read_only(array: Tensor) -> Tensor:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True)
class _LocalOffer:
    """An update that is already here."""

    whole: Message
    specs: Mapping[str, TensorSpec]
    is_complete: bool = True

    @property
    def header(self) -> Mapping[str, JsonValue]:
        return self.whole.header

    @property
    def size_bytes(self) -> int:
        return self.whole.size_bytes

    def allocate(self) -> None:
        """Nothing to do: the tensors are here."""

    def discard(self) -> None:
        """Nothing to do: nothing is read."""

    def message(self) -> Message:
        tensors = {name: _read_only(array) for name, array in self.whole.tensors.items()}
        return Message(self.whole.header, tensors, self.whole.blobs)
