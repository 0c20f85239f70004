"""Which sites a call asks: all, some by name, by label, or a random sample.

    fed.broadcast("train", model, sites=["cleveland", "hungary"])
    fed.broadcast("train", model, sites=labelled(region="eu"))
    fed.broadcast("train", model, sites=sample(0.1, weighted_by="examples"))
    fed.broadcast("train", model, sites=sample(5, of=labelled(region="eu")))

A sample depends on nothing but its seed, the round and the sites there are: a job that comes back
in the middle of a round asks the same sites again.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.errors import ConfigurationError


@dataclass(frozen=True)
class Draw:
    """What a choice may depend on.

    Args:
        sites: The sites to choose among.
        round: The round, counted from 1; 0 outside rounds.
        seed: The job's seed.
        labels: What a site says of itself, such as `{"region": "eu"}`.
        weight: Weight of a site's newest update; None if it has sent none.
    """

    sites: Sequence[str]
    round: int = 0
    seed: int = 0
    labels: Callable[[str], Mapping[str, str]] = lambda site: {}
    weight: Callable[[str], float | None] = lambda site: None

    def examples(self, site: str) -> float | None:
        """Returns how much data a site has: its label "examples", else its update's weight."""
        try:
            said = float(self.labels(site)["examples"])
        except (KeyError, ValueError):
            return self.weight(site)
        return said if 0 < said < math.inf else self.weight(site)


Rule: TypeAlias = Callable[[Draw], Sequence[str]]
"""Returns the sites that it chooses; a plain function will do.

It is called for the sites that can be reached, and once more for those that are left out and are to
be tried again, if there are any; so it must do with however few.
"""

Sites: TypeAlias = Sequence[str] | Rule | None
"""Sites to ask: their names, a rule, or None for all that are reachable and not left out."""


def labelled(of: Sites = None, **labels: str) -> Rule:
    """Chooses the sites that have all of these labels.

    Args:
        of: Names, or another rule, to choose among; all sites if None.
        labels: Name -> value.

    >>> regions = {"a": "eu", "b": "us"}
    >>> labelled(region="eu")(Draw(["a", "b"], labels=lambda site: {"region": regions[site]}))
    ['a']
    """

    def choose(draw: Draw) -> Sequence[str]:
        return [
            site
            for site in among(of, draw)
            if all(draw.labels(site).get(name) == value for name, value in labels.items())
        ]

    return choose


def sample(
    size: int | float,
    *,
    seed: int | None = None,
    weighted_by: Literal["examples"] | None = None,
    of: Sites = None,
) -> Rule:
    """Chooses sites at random, without replacement, anew in each round.

    Args:
        size: How many: a count (int), or a share of the sites (float, 0 to 1, rounded up). All of
            them, where there are no more.
        seed: Seed of the choice; the job's if None.
        weighted_by: "examples": a site with twice the data is drawn with twice the weight. Its data
            is what its label "examples" says, else the weight of its newest update (of this attempt
            of the job), else the mean of the others'. None: all alike.
        of: Names, or another rule, to choose among; all sites if None.

    Raises:
        ConfigurationError: `size` is neither a count above 0 nor a share.

    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", Algorithm A:
    the largest keys `u ** (1 / weight)`. Ours takes each `u` from a hash of seed, round and name,
    so that a site more or less changes nothing for the others.
    """
    is_share = isinstance(size, float)
    if isinstance(size, bool) or not (0 < size <= 1 if is_share else size >= 1):
        raise ConfigurationError(
            f"a sample of {size!r} sites: give a count of at least 1 (an int), or a share above 0 "
            "and at most 1.0 (a float)."
        )

    def choose(draw: Draw) -> Sequence[str]:
        sites = among(of, draw)
        count = math.ceil(round(size * len(sites), 9)) if is_share else int(size)
        if count >= len(sites):
            return sites
        mixed = draw.seed if seed is None else seed
        keys = np.log(_uniform(sites, draw.round, mixed))
        if weighted_by == "examples":
            keys /= _sizes(sites, draw)
        chosen = np.argpartition(-keys, count)[:count]
        return [sites[position] for position in sorted(chosen)]

    return choose


def shuffled(sites: Sequence[str], round: int, seed: int) -> list[str]:
    """Returns sites in a random order that depends on nothing but seed, round and their names."""
    order = np.argsort(_uniform(sites, round, seed))
    return [sites[position] for position in order]


def among(sites: Sites, draw: Draw) -> Sequence[str]:
    """Returns the sites of a draw that are named, or that a rule chooses; all for None."""
    if sites is None:
        return draw.sites
    if callable(sites):
        return sites(draw)
    return [site for site in draw.sites if site in sites]


def _uniform(sites: Sequence[str], round: int, seed: int) -> NDArray[np.float64]:
    """Returns for each site a number between 0 and 1, neither of them, that looks random.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", the
    finalizer of SplitMix64.
    """
    bits = np.fromiter(map(_digest, sites), np.uint64, len(sites))
    bits ^= np.uint64(_digest(f"{seed}/{round}"))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    uniform: NDArray[np.float64] = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    return uniform


@functools.lru_cache(maxsize=1 << 16)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _sizes(sites: Sequence[str], draw: Draw) -> NDArray[np.float64]:
    said = [draw.examples(site) for site in sites]
    known = [size for size in said if size is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    return np.array([mean if size is None else size for size in said])
