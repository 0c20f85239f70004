"""A site's side of a job's connection, as a pure state machine: no I/O, no clock, no threads.

It knows which site tasks the site works on, keeps each update until the controller has acknowledged
it, keeps what has arrived of a task whose transfer broke, and obeys the highest epoch that it has
seen. A driver feeds it what arrives and carries what it sends; calls must not overlap.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from prefect_federated.errors import ProtocolError
from prefect_federated.transport.signals import (
    EAGER_BYTES,
    FromSite,
    Hello,
    SiteNotes,
    SiteOffer,
    SitePayload,
    SiteUpdate,
)
from prefect_federated.wire import PROTOCOL_VERSION, Encoded, Incoming


class Session:
    """One site in one job.

    Args:
        site: The site's name.
        kinds: Kinds of site task that it can do.
        labels: What it says of itself.
    """

    def __init__(
        self, site: str, kinds: Sequence[str], labels: Mapping[str, str] | None = None
    ) -> None:
        self.site = site
        self.epoch = 0
        self._kinds = tuple(kinds)
        self._labels = dict(labels or {})
        self._holding: dict[str, Encoded | None] = {}  # task id -> its update; None: at work on it
        self._noted: dict[
            str, tuple[SiteNotes, ...]
        ] = {}  # the last ones, which go before the update
        self._arriving: dict[str, Incoming] = {}
        self._send: Callable[[FromSite], None] | None = None  # None before the welcome
        self._to_controller: Callable[[FromSite], None] | None = None

    # What the driver tells of its connection

    def hello(self) -> Hello:
        """Returns how the site introduces itself now."""
        receiving = {task: incoming.received for task, incoming in self._arriving.items()}
        return Hello(
            self.site, self._kinds, PROTOCOL_VERSION, self.epoch, tuple(self._holding),
            self._labels, receiving,
        )  # fmt: skip

    def connected(self, send: Callable[[FromSite], None]) -> None:
        """Notes where to send from now on; nothing goes out before the welcome."""
        self._to_controller = send

    def disconnected(self) -> None:
        """Notes that nothing can be sent any more."""
        self._send = None

    # What arrives

    def welcome(self, epoch: int, wanted: Sequence[str]) -> bool:
        """Takes the controller's welcome; False if a newer attempt of the job has been seen.

        Updates that are still wanted are offered again, the others dropped.
        """
        if epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self._arriving.clear()
        self.epoch = epoch
        self._holding = {task: held for task, held in self._holding.items() if task in wanted}
        self._noted = {task: notes for task, notes in self._noted.items() if task in wanted}
        self._send = self._to_controller
        for task, held in self._holding.items():
            if held is not None:
                self._offer(task, held)
        return True

    def task(self, incoming: Incoming) -> None:
        """Takes the head of a site task, whose payload follows; makes room for it."""
        self._arriving = {}  # a site holds at most the received model and its result
        incoming.allocate()
        self._arriving[str(incoming.header.get("id"))] = incoming

    def payload(self, task: str, offset: int) -> Incoming:
        """Returns the site task whose transfer goes on.

        Raises:
            ProtocolError: the site does not have so much of it.
        """
        incoming = self._arriving.get(task)
        if incoming is None or incoming.received != offset:
            there = "nothing" if incoming is None else f"{incoming.received:,} bytes"
            raise ProtocolError(
                f"the controller goes on with task {task[:40]!r} at byte {offset:,}; this site "
                f"has {there} of it."
            )
        return incoming

    def complete(self, incoming: Incoming) -> bool:
        """Takes a site task that is there whole; whether the executor is to do it."""
        task = str(incoming.header.get("id"))
        if self._arriving.pop(task, None) is not incoming or task in self._holding:
            return False
        self._holding[task] = None
        return True

    def go(self, task: str, offset: int) -> None:
        """Sends the payload of an update for which the controller has room."""
        self._noted.pop(task, None)  # they have arrived, since the offer has that came after them
        held = self._holding.get(task)
        if held is not None and self._send is not None:
            self._send(SitePayload(task, held, offset, partial(self.is_wanted, task)))

    def ack(self, task: str) -> None:
        """Forgets an update: the controller has it, or does not want it."""
        self._holding.pop(task, None)
        self._noted.pop(task, None)

    def close(self, task: str) -> None:
        """Forgets a site task that nobody waits for any more."""
        self._holding.pop(task, None)
        self._noted.pop(task, None)
        self._arriving.pop(task, None)

    # What the executor's side calls

    def is_wanted(self, task: str) -> bool:
        """Whether the controller still waits for this site task, as far as the site knows."""
        return task in self._holding

    def tell(self, notes: SiteNotes) -> bool:
        """Sends notes of a task at work; False if they cannot be sent now.

        Those of a task that nobody waits for are dropped. They are sent once: what was on its way
        when the connection broke is lost.
        """
        if notes.id not in self._holding:
            return True
        if self._send is None:
            return False
        self._send(notes)
        return True

    def reply(self, task: str, update: Encoded, notes: Sequence[SiteNotes] = ()) -> None:
        """Keeps a task's update until it is acknowledged, and sends it, now or when connected.

        Args:
            task: The task's id.
            update: Its update, or its failure.
            notes: The last notes of the task; they go before the update, and again with it.
        """
        if task in self._holding:
            self._holding[task] = update
            self._noted[task] = tuple(notes)
            if self._send is not None:
                self._offer(task, update)

    def _offer(self, task: str, update: Encoded) -> None:
        assert self._send is not None
        for notes in self._noted.get(task, ()):
            self._send(notes)
        is_small = update.payload_bytes <= EAGER_BYTES
        self._send(SiteUpdate(task, update) if is_small else SiteOffer(task, update))
