"""Which sites can be given work now, where a flow keeps them all at work: each in its turn."""

import math
from collections.abc import Collection

from prefect_federated.transport.hub import Hub

_LOOK_EVERY_S = 0.5  # for sites that have become part of the job, or are due for a trial
_BETWEEN_TRIALS_S = 10.0  # that a site which is left out is given work


class Turns:
    """The sites of a job in the order in which they were given work, longest ago first.

    What a look costs does not grow with the sites that are done with: those at work are passed
    over, and only the idle ones are looked at more closely.

    Args:
        hub: The job's hub.
        lost_after_s: Seconds for which a site whose connection has gone is one to ask, where there
            is no other.
    """

    def __init__(self, hub: Hub, lost_after_s: float) -> None:
        self._hub = hub
        self._lost_after_s = lost_after_s
        self._order: dict[str, None] = {}
        self._looked_at = -math.inf
        self._due: set[str] = set()
        self._tried_at: dict[str, float] = {}

    def take(self, kind: str, at_work: Collection[str], most: int | None) -> list[str]:
        """Returns idle sites, at most so many, and notes that they are given work.

        A site that is left out is among them once in a while; at once, if there is no other.

        Args:
            kind: The site task.
            at_work: Sites that have one.
            most: How many; None for all.
        """
        now = self._hub.clock()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            for site in self._hub.sites:
                self._order.setdefault(site)
            self._due = {site for site in self._hub.trials(kind) if self._may_try(site, now)}
        taken: list[str] = []
        for site in self._order:
            if most is not None and len(taken) >= most:
                break
            if site not in at_work and self._is_idle(site, kind):
                taken.append(site)
        if not taken and not at_work:
            lost_a_moment_ago = self._hub.reachable(self._lost_after_s)
            taken = [site for site in lost_a_moment_ago if self._hub.can(site, kind)]
            left_out = (
                site for site in self._hub.attached() if self._is_last_hope(site, kind, now)
            )
            taken = (taken or list(left_out))[:most]
        for site in taken:
            self._order.pop(site, None)
            self._order[site] = None  # last, from now on
            if self._hub.left_out(site) is not None:
                self._due.discard(site)
                self._tried_at[site] = now
        return taken

    def _may_try(self, site: str, now: float) -> bool:
        return now - self._tried_at.get(site, -math.inf) >= _BETWEEN_TRIALS_S

    def _is_last_hope(self, site: str, kind: str, now: float) -> bool:
        is_left_out = self._hub.left_out(site) is not None
        return is_left_out and self._hub.can(site, kind) and self._may_try(site, now)

    def _is_idle(self, site: str, kind: str) -> bool:
        if not self._hub.is_attached(site) or not self._hub.can(site, kind):
            return False
        return self._hub.left_out(site) is None or site in self._due
