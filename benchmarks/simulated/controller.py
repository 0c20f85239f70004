"""A controller's process: the real hub, and a flow that asks for one round after the other."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.simulated.connection import Connection, fill
from benchmarks.simulated.site import LARGE
from benchmarks.simulated.world import World
from prefect_federated.errors import FederatedError, QuorumNotReached
from prefect_federated.messages import Message, Update
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Hello, Moment, Outgoing, SiteNotes
from prefect_federated.transport.waiting import Call
from prefect_federated.wire import begin, specs_of

if TYPE_CHECKING:
    from benchmarks.simulated.federation import SimulatedFederation


class Controller:
    """A controller's process: the real hub, and a flow that asks for one round after the other."""

    def __init__(self, world: World, federation: "SimulatedFederation", epoch: int) -> None:
        self.world = world
        self.federation = federation
        self.epoch = epoch
        self.is_alive = True
        chance = world.chance
        self.hub = Hub(
            "job", epoch, federation.names, world.clock,
            max_failures=chance.choice([None, 1, 2, 3]),
        )  # fmt: skip
        self.hub.listeners.append(self._hear)
        self._speaker = ("", "")
        self._intruders: list[str] = []  # a hub goes on whatever its listeners raise
        self._asked: dict[str, set[str]] = {}
        self._late: dict[str, float] = {}
        self._call: Call | None = None
        self._other: Call | None = None
        self._terms = CallTerms()
        self._counted: list[Update] = []
        self._reading: str | None = None
        self._next_look: float | None = None
        self.round = federation.store.claim(epoch)
        world.say(f"controller {epoch} goes on after round {self.round}")
        world.later(chance.uniform(0, 4), self.next_round)

    # The endpoint: what a driver does

    def hello(self, link: Connection, hello: Hello) -> None:
        """Takes a site's hello."""
        if not self.is_alive:
            link.cut()
            return
        early: list[Outgoing] = []  # the welcome goes before it
        try:
            link.attachment = self.hub.attach(hello, lambda item: self._send(link, item, early))
        except FederatedError as error:
            self.world.say(f"controller {self.epoch} refuses {hello.site}: {error}")
            link.cut()
            return
        welcome = ("welcome", link.attachment.epoch, link.attachment.wanted)
        link.carry("down", lambda: link.site.take(link, welcome))
        for item in early:
            link.carry("down", partial(link.site.take, link, item))
        self.look()

    def _send(self, link: Connection, item: Outgoing, early: list[Outgoing]) -> None:
        if link.attachment is None:
            early.append(item)
        else:
            link.carry("down", lambda: link.site.take(link, item))

    def offer(self, link: Connection, head: bytes) -> None:
        """Takes the head of an update."""
        if self.is_alive and link.attachment is not None:
            self.hub.offer(link.attachment, begin(head), at_once=False)
            self.look()

    def small(self, link: Connection, head: bytes, payload: bytes) -> None:
        """Takes an update that was sent unasked."""
        if not self.is_alive or link.attachment is None:
            return
        incoming = begin(head)
        if self.hub.offer(link.attachment, incoming, at_once=True):
            fill(incoming, payload)
            self.hub.deliver(link.attachment, incoming)
        self.look()

    def note(self, link: Connection, notes: SiteNotes) -> None:
        """Takes what a site says while it works."""
        if self.is_alive and link.attachment is not None:
            self._speaker = (link.site.name, notes.id)
            self.hub.note(link.attachment, notes)

    def _hear(self, moment: Moment) -> None:
        if moment.name == "metrics_logged":
            site, task = self._speaker
            is_asked = site in self._asked.get(task, set()) or moment.detail["kind"] == "evaluate"
            if site != moment.site or not is_asked:
                self._intruders.append(f"{site} speaks of {task} as {moment.site}")
            self.federation.notes += 1

    def expect_payload(self, link: Connection, task: str) -> None:
        """A site is about to send the payload of an update."""
        self.world.say(f"{link.site.name} sends {task}")

    def chunk(self, link: Connection, task: str, start: int, part: bytes) -> None:
        """Takes a piece of an update's payload; what does not follow on ends the connection."""
        if not self.is_alive or link.attachment is None:
            return
        incoming = link.attachment.incoming.get(task)
        if incoming is None or incoming.is_complete:
            return
        if incoming.received != start:
            link.cut()
            return
        before = b"\0" * incoming.received
        fill(incoming, before + part)
        if incoming.is_complete:
            self.hub.deliver(link.attachment, incoming)
        self.look()

    # The flow: what a job does

    def next_round(self) -> None:
        """Asks for the next round, or ends the job."""
        if not self.is_alive:
            return
        if self.round >= self.federation.rounds:
            self.federation.is_completed = True
            self.hub.end("completed", "all rounds are done")
            return
        chance = self.world.chance
        # Where all are left out, they are asked as if they were not, as a real flow does.
        sites = self.hub.reachable(30.0) or self.hub.attached()
        if not sites:
            self.world.later(1.0, self.next_round)
            return
        if len(sites) > 1 and chance.random() < 0.3:
            sites = sorted(chance.sample(sites, chance.randint(1, len(sites))))
        self._aside(sites)
        size = chance.choice([1, LARGE])
        model = {"w": np.zeros(size)}
        self._terms = CallTerms(
            round=self.round + 1,
            quorum=chance.choice([0, 1, 0.5, 0.7, 0.5]),
            timeout_s=chance.choice([5.0, 30.0, 100.0]) + (1_000 if self.world.is_calm else 0),
            lost_after_s=chance.choice([5.0, 30.0]) + (100 if self.world.is_calm else 0),
            expect=specs_of(model),
            grace_s=chance.choice([None, 0.0, 2.0, 20.0]),
            in_flight=chance.choice([None, None, 1, 2]),
            late=chance.choice([0.0, 0.5, 1.0]),
        )
        trials = self.hub.trials("train")
        self._call = self.hub.call("train", Message({}, model), sites, self._terms, trials)
        self._asked[self._call.id] = {*sites, *trials}
        self._late[self._call.id] = self._terms.late
        self._counted = []
        self.world.say(
            f"controller {self.epoch} asks {','.join(sites)} +{','.join(trials)} for round "
            f"{self._terms.round} ({self._call.id}): {self._terms}"
        )
        self.look()

    def _aside(self, sites: list[str]) -> None:
        """Sometimes asks for something else, too, which is read later, or never."""
        chance = self.world.chance
        if self._other is not None and chance.random() < 0.5:
            self._other.cancel("the flow does not need it any more")
            self._other = None
        if self._other is None and chance.random() < 0.3:
            terms = CallTerms(
                round=self.round + 1, quorum=0, timeout_s=chance.choice([5.0, 100.0]),
                late=chance.choice([0.0, 0.5]),
            )  # fmt: skip
            model = {"w": np.zeros(chance.choice([1, LARGE]))}
            self._other = self.hub.call("evaluate", Message({}, model), sites, terms)

    def look(self) -> None:
        """Reads what has arrived, applies deadlines, and goes on when the call is over."""
        if not self.is_alive or self._call is None or self._reading is not None:
            return
        call = self._call
        with self.hub.awaiting([call.record]) as exchange:
            next_look = exchange.look()
            reply = exchange.next_reply(call.record)
            own = sum(asked.call is call.record for asked in exchange.deliveries.room.held)
            held = len(exchange.deliveries.room.held)
        self.world.require(own <= 2, f"{own} updates of one call in memory")
        self.world.require(held <= 4, f"{held} updates in memory")
        if isinstance(reply, Update):
            self._count(reply)
            self._reading = reply.site
            self.world.later(self.world.chance.expovariate(10), self._consumed)
        elif reply is not None:
            self.world.say(f"controller {self.epoch}: {reply.site} failed: {reply.reason}")
            self.look()
        elif not call.record.waiting:
            self._finish(call)
        elif next_look is not None and next_look != self._next_look:
            self._next_look = next_look
            self.world.later(max(0.0, next_look - self.world.now), self._look_again)

    def _look_again(self) -> None:
        self._next_look = None
        self.look()

    def _consumed(self) -> None:
        if not self.is_alive or self._call is None or self._reading is None:
            return
        with self.hub.turn() as exchange:
            exchange.consumed(self._call.record, self._reading)
        self._reading = None
        self.look()

    def _count(self, update: Update) -> None:
        world, number = self.world, float(update.tensors["w"][0])
        site, task = self.federation.maker(number)
        world.say(f"controller {self.epoch} counts {update.site} ({task})")
        world.require(site == update.site, f"an update of {site} counts as {update.site}'s")
        asked = self._asked.get(task, set())
        world.require(site in asked, f"{site} was not asked for {task} by attempt {self.epoch}")
        is_late = self._call is not None and task != self._call.id
        world.require(
            not is_late or self._late[task] > 0, f"{site}'s {task} counts, but its call is closed"
        )
        world.require(
            site not in {other.site for other in self._counted}, f"{site} counts twice in a round"
        )
        world.require(number not in self.federation.counted, f"an update of {site} counts again")
        self.federation.counted.add(number)
        self._counted.append(update)

    def _finish(self, call: Call) -> None:
        world, self._call = self.world, None
        with self.hub.turn() as exchange:
            exchange.close(call.record, "read")
        needed = self._terms.updates_needed(len(call.sites))
        try:
            call.record.check_quorum()
        except QuorumNotReached as error:
            world.require(len(self._counted) < needed, f"the quorum was there: {error}")
            world.say(f"controller {self.epoch}: {error}")
            self.die()  # the flow fails, and Prefect's retry is a new attempt
            return
        world.require(len(self._counted) >= needed, "an aggregate below the quorum")
        if not self.federation.store.commit(self.epoch, self._terms.round):
            world.say(f"controller {self.epoch} learns that it is not the newest")
            self.is_alive = False
            self.federation.cut_all(self)
            return
        self.round = self._terms.round
        world.later(world.chance.expovariate(2), self.next_round)

    def check(self) -> None:
        """Requires that no site spoke of what it was not asked, and no call is open too long."""
        self.world.require(not self._intruders, "; ".join(self._intruders))
        if self.is_alive and self._call is not None and self._reading is None:
            end = self._call.record.started + self._terms.timeout_s
            late = self.world.now > end + 1 and self._call.record.waiting
            self.world.require(not late, f"call {self._call.id} is open after its deadline")

    def die(self, is_seen: bool = True) -> None:
        """Kills the controller; or only cuts it off, so that it is thought dead and lives on."""
        self.world.say(f"controller {self.epoch} {'dies' if is_seen else 'is thought dead'}")
        if is_seen:
            self.is_alive = False
            self.federation.cut_all(self)
        self.world.later(self.world.chance.uniform(1, 10), self.federation.start_controller)
