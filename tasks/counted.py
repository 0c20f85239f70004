"""Whose update a job counted last, in which round and with which weight: SCAFFOLD's bookkeeping.

A site keeps its control variate by itself. Which one of those that it has kept is in the server's,
the server says with each task: that of the last round whose update was counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from prefect_federated.messages import JsonValue, Reply, Tensors, Update


class Counted:
    """Whose update was counted last in which round, and with which weight.

    Args:
        rounds: Site -> the last round whose update was counted.
        weights: Site -> the weight of that update.
        everyone: The weight of all sites, as it was in the last c; 0 before the first.
        number: The round that is under way.
        weighting: "uniform", or "examples".
    """

    def __init__(
        self,
        rounds: dict[str, int],
        weights: dict[str, float],
        everyone: float,
        number: int,
        weighting: str,
    ) -> None:
        self.rounds: dict[str, JsonValue] = {**rounds}
        self.buffers: set[str] = set()
        """Names of tensors that the round's updates say are no parameters."""
        self._weights = weights
        self._everyone = everyone
        self._number = number
        self._is_uniform = weighting == "uniform"

    @staticmethod
    def of(extra: Mapping[str, Tensors], number: int, weighting: str) -> "Counted":
        """Returns what `as_extra` has kept."""
        counted = extra.get("counted", {})
        rounds = {site: int(kept[0]) for site, kept in counted.items()}
        weights = {site: float(kept[1]) for site, kept in counted.items()}
        everyone = float(extra["everyone"]["weight"]) if "everyone" in extra else 0.0
        return Counted(rounds, weights, everyone, number, weighting)

    def counting(self, replies: Iterable[Reply]) -> Iterator[Reply]:
        """Passes replies on with their weights in the mean, and notes whose they are."""
        for reply in replies:
            if isinstance(reply, Update):
                reply = replace(reply, weight=1.0) if self._is_uniform else reply
                self.rounds[reply.site] = self._number
                self._weights[reply.site] = reply.weight
                self.buffers.update(reply.buffers)
            yield reply
            del reply

    def shares(self, sites: int) -> tuple[float, float]:
        """Returns what part of the last c stays, and the round's updates' part of all sites.

        The second is |S| / N. The first is 1, unless more is known of the sites' weights now, or
        there are more sites: then 1 / N is another one than it was in the last c.
        """
        known = sum(self._weights.values())
        before = self._everyone
        self._everyone = known + (sites - len(self._weights)) * known / len(self._weights)
        here = [site for site, number in self.rounds.items() if number == self._number]
        share = sum(self._weights[site] for site in here) / self._everyone
        return (before or self._everyone) / self._everyone, share

    def as_extra(self) -> dict[str, Tensors]:
        """Returns the same as tensors: site -> [round, weight], and the weight of all sites."""
        counted = {site: np.array([self.rounds[site], self._weights[site]]) for site in self.rounds}
        return {"counted": counted, "everyone": {"weight": np.array(self._everyone)}}
