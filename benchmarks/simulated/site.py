"""A site's process: the real session, an executor that takes its time, a link that dials."""

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.simulated.connection import SILENCE_S, Connection, fill
from benchmarks.simulated.world import World
from prefect_federated.errors import FederatedError
from prefect_federated.messages import Note, Update
from prefect_federated.transport.session import Session
from prefect_federated.transport.signals import (
    FromSite,
    Outgoing,
    SendAck,
    SendClose,
    SendEnd,
    SendGo,
    SendTask,
    SiteNotes,
    SiteOffer,
    SitePayload,
)
from prefect_federated.transport.updates import failure_of, message_of
from prefect_federated.wire import Frame, Incoming, begin, encode

if TYPE_CHECKING:
    from benchmarks.simulated.federation import SimulatedFederation

LARGE = 12_000  # float64 elements: more than is sent unasked
_CHUNK = 40_000  # bytes that arrive together


class SimulatedSite:
    """A site's process: the real session, an executor that takes its time, a link that dials."""

    def __init__(self, world: World, name: str, federation: "SimulatedFederation") -> None:
        self.world = world
        self.name = name
        self.federation = federation
        self.session = Session(name, ("train", "evaluate"))
        self.connection: Connection | None = None
        self.is_alive = True
        self.slowness = world.chance.choice([0.5, 2.0, 2.0, 10.0, 40.0])
        self._queue: deque[Incoming] = deque()
        self._is_busy = False
        self._life = 0
        world.later(world.chance.uniform(0, 3), self.dial)

    def die(self) -> None:
        """Kills the process; another starts after a while, and knows nothing."""
        self.world.say(f"{self.name} dies")
        self._life += 1
        self.is_alive, self._is_busy = False, False
        self._queue.clear()
        if self.connection is not None:
            self.connection.cut()
        self.connection = None
        self.world.later(self.world.chance.uniform(1, 20), self._start)

    def _start(self) -> None:
        self.session, self.is_alive = Session(self.name, ("train", "evaluate")), True
        self.dial()

    def dial(self) -> None:
        """Connects to the controller that the gateway knows, or tries again later."""
        if not self.is_alive or self.connection is not None:
            return
        controller = self.federation.route(self.name)
        if controller is None:
            self.world.later(self.world.chance.uniform(0.2, 3), self.dial)
            return
        self.connection = link = Connection(self.world, self, controller)
        self.session.connected(lambda item: self._send(link, item))
        hello = self.session.hello()
        link.carry("up", lambda: controller.hello(link, hello))
        self.world.later(SILENCE_S, lambda: self._give_up(link))

    def _give_up(self, link: Connection) -> None:
        if link is self.connection and link.attachment is None:
            link.cut()

    def disconnected(self, link: Connection) -> None:
        """Notes that a connection is gone, and dials again."""
        if link is self.connection:
            self.session.disconnected()
            self.connection = None
            self.world.later(self.world.chance.uniform(0.2, 3), self.dial)

    def _send(self, link: Connection, item: FromSite) -> None:
        if isinstance(item, SiteNotes):
            link.carry("up", lambda: link.controller.note(link, item))
            return
        head = item.update.head
        if isinstance(item, SiteOffer):
            link.carry("up", lambda: link.controller.offer(link, head))
        elif isinstance(item, SitePayload):
            payload = b"".join(item.update.payload)
            link.controller.expect_payload(link, item.id)
            for start in range(item.offset, max(len(payload), item.offset + 1), _CHUNK):
                part = payload[start : start + _CHUNK]
                link.carry("up", partial(link.controller.chunk, link, item.id, start, part))
        else:
            payload = b"".join(item.update.payload)
            link.carry("up", lambda: link.controller.small(link, head, payload))

    def take(self, link: Connection, item: Outgoing | tuple[str, int, tuple[str, ...]]) -> None:
        """Takes what the controller sends."""
        if link is not self.connection or not self.is_alive:
            return
        session = self.session
        if isinstance(item, tuple):
            before = session.epoch
            if not session.welcome(item[1], item[2]):
                link.cut()
            self.world.require(session.epoch >= before, f"{self.name} went back to an old attempt")
        elif isinstance(item, SendTask):
            self._take_task(item)
        elif isinstance(item, SendGo):
            session.go(item.id, item.offset)
        elif isinstance(item, SendAck):
            session.ack(item.id)
        elif isinstance(item, SendClose):
            session.close(item.id)
        elif isinstance(item, SendEnd):
            link.cut()

    def _take_task(self, item: SendTask) -> None:
        payload = b"".join(item.task.payload)
        try:
            if item.offset:
                incoming = self.session.payload(item.id, item.offset)
            else:
                incoming = begin(item.task.head)
                self.session.task(incoming)
        except FederatedError:
            link = self.connection
            if link is not None:
                link.cut()  # as a driver does: what came out of order makes no sense
            return
        end = len(payload)
        if self.world.happens(0.03):  # the rest does not come through
            end = self.world.chance.randint(incoming.received, end)
        fill(incoming, payload[:end])
        if not incoming.is_complete:
            if self.connection is not None:
                self.connection.freeze()
        elif self.session.complete(incoming):
            self._queue.append(incoming)
            self._work()

    def _work(self) -> None:
        while self._queue and not self._is_busy:
            task = self._queue.popleft()
            if not self.session.is_wanted(str(task.header["id"])):
                continue
            self._is_busy = True
            seconds = self.world.chance.expovariate(1 / self.slowness)
            self.world.later(seconds, partial(self._done, task, self._life))

    def _done(self, task: Incoming, life: int) -> None:
        if life != self._life:
            return
        self._is_busy = False
        number = str(task.header["id"])
        what = self.world.chance.random()
        if self.world.happens(0.05):
            message = failure_of(number, RuntimeError("the scanner is off"))
        else:
            size = LARGE if task.payload_bytes > 1_000 else 1
            tensors = {"w": np.full(size, self.federation.made(self.name, number))}
            if self.world.happens(0.03):
                tensors = {"x": np.zeros(2)} if what < 0.5 else {"w": np.full(size, np.nan)}
            message = message_of(number, Update(tensors))
        said = SiteNotes(number, (Note(self.world.now, {"epoch": 1.0}),))
        if what < 0.5:
            self.session.tell(said)
        self.session.reply(number, encode(Frame.UPDATE, message), [said] if what < 0.2 else [])
        self._work()
