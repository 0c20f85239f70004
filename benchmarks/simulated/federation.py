"""Sites, controllers, the store and all that happens to them, under one seed."""

from benchmarks.simulated.controller import Controller
from benchmarks.simulated.site import SimulatedSite
from benchmarks.simulated.world import Store, World

PATIENCE_S = 4_000.0


class SimulatedFederation:
    """All of it, under one seed.

    Args:
        seed: Decides everything.
        keep: Lines to keep of what happened.
    """

    def __init__(self, seed: int, keep: int = 60) -> None:
        self.world = World(seed, keep)
        chance = self.world.chance
        self.names = [f"site-{number}" for number in range(1, chance.randint(2, 6) + 1)]
        self.rounds = chance.randint(4, 24)
        self.store = Store(self.world)
        self.counted: set[float] = set()
        self.is_completed = False
        self.steps = 0
        self.notes = 0  # that controllers have taken
        self.controllers: list[Controller] = []
        self._made: dict[float, tuple[str, str]] = {}
        self._epochs = 0
        self._unreachable: set[str] = set()
        self.start_controller()
        self.sites = [SimulatedSite(self.world, name, self) for name in self.names]
        self.world.later(chance.expovariate(1 / 10), self._mishap)

    def run(self) -> None:
        """Lets time pass until the job is completed.

        Raises:
            Violation: something happened that must never happen.
        """
        world = self.world
        while not self.is_completed and world.step():
            self.steps += 1
            for controller in self.controllers:
                controller.check()
            world.require(world.now < PATIENCE_S, "the job does not come to an end in calm weather")
        world.require(self.is_completed, "nothing happens any more, and the job is not completed")

    def start_controller(self) -> None:
        """Starts the next attempt of the job."""
        if not self.is_completed:
            self._epochs += 1
            self.controllers.append(Controller(self.world, self, self._epochs))

    def route(self, site: str) -> Controller | None:
        """Returns the controller that a site reaches now: mostly the newest one."""
        alive = [controller for controller in self.controllers if controller.is_alive]
        if not alive or site in self._unreachable:
            return None
        return self.world.chance.choice(alive) if self.world.happens(0.1) else alive[-1]

    def cut_all(self, controller: Controller) -> None:
        """Ends all connections to a controller."""
        for site in self.sites:
            if site.connection is not None and site.connection.controller is controller:
                site.connection.cut()

    def made(self, site: str, task: str) -> float:
        """Notes that a site has made an update for a task; returns the number that marks it."""
        number = float(len(self._made) + 1)
        self._made[number] = (site, task)
        return number

    def maker(self, number: float) -> tuple[str, str]:
        """Returns who made an update, and for which task."""
        return self._made[number]

    def _mishap(self) -> None:
        world = self.world
        if world.is_calm:
            self._unreachable.clear()
            return
        world.later(world.chance.expovariate(1 / 10), self._mishap)
        site, newest = world.chance.choice(self.sites), self.controllers[-1]
        what = world.chance.random()
        if what < 0.3 and site.is_alive:
            site.die()
        elif what < 0.55 and site.connection is not None:
            site.connection.cut()
        elif what < 0.7 and site.connection is not None:
            site.connection.freeze()
        elif what < 0.85:
            self._partition()
        elif newest.is_alive:
            newest.die(is_seen=what < 0.95)

    def _partition(self) -> None:
        some = self.world.chance.sample(self.sites, self.world.chance.randint(1, len(self.sites)))
        self.world.say(f"cut off: {', '.join(site.name for site in some)}")
        names = {site.name for site in some}
        self._unreachable |= names
        for site in some:
            if site.connection is not None:
                site.connection.freeze()
        self.world.later(
            self.world.chance.uniform(1, 60), lambda: self._unreachable.difference_update(names)
        )
