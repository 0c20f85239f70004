"""A connection with a network of chance in between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.simulated.world import World
from prefect_federated.transport.signals import Attachment
from prefect_federated.wire import Incoming

if TYPE_CHECKING:
    from benchmarks.simulated.controller import Controller
    from benchmarks.simulated.site import SimulatedSite

SILENCE_S = 12.0


@dataclass
class Connection:
    """One connection: both directions deliver in order, but for the mishaps."""

    world: World
    site: "SimulatedSite"
    controller: "Controller"
    attachment: Attachment | None = None
    is_open: bool = True
    is_frozen: bool = False
    _last: dict[str, float] = field(default_factory=dict)

    def carry(self, direction: str, deliver: Callable[[], None]) -> None:
        """Delivers something after a while; or late, twice, out of order, or never."""
        chance, world = self.world.chance, self.world
        if not self.is_open:
            return
        if self.is_frozen or world.happens(0.005):
            self.freeze()
            return
        for _ in range(2 if world.happens(0.01) else 1):
            delay = chance.expovariate(20) + (chance.uniform(0, 8) if world.happens(0.02) else 0)
            arrives = world.now + delay
            if not world.happens(0.01):  # in order, as a stream is
                arrives = max(arrives, self._last.get(direction, 0.0) + 1e-6)
                self._last[direction] = arrives
            world.later(arrives - world.now, lambda: deliver() if self.is_open else None)

    def freeze(self) -> None:
        """Lets nothing through any more; both ends notice after a silence."""
        if not self.is_frozen:
            self.is_frozen = True
            self.world.later(SILENCE_S + self.world.chance.uniform(0, 2), self.cut)

    def cut(self) -> None:
        """Ends the connection; each end notices by itself, a little later."""
        if not self.is_open:
            return
        self.is_open = False
        chance = self.world.chance
        self.world.later(chance.uniform(0, 1), self._tell_controller)
        self.world.later(chance.uniform(0, 1), lambda: self.site.disconnected(self))

    def _tell_controller(self) -> None:
        if self.attachment is not None and self.controller.is_alive:
            self.controller.hub.detach(self.attachment)
            self.controller.look()


def fill(incoming: Incoming, payload: bytes) -> None:
    """Puts the payload in place, from where the message has broken off."""
    while incoming.received < len(payload):
        place = incoming.place(len(payload) - incoming.received)
        place[:] = payload[incoming.received : incoming.received + len(place)]
        incoming.advance(len(place))
