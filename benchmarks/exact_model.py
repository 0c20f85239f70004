"""An executor whose result can be told exactly, bit by bit, from who contributed to which round.

A site's update is a hash of the model that it received, of its round and of its name, as whole
numbers in float64: a weighted sum of them is exact in any order, and the mean is rounded once. So
the model after the last round depends on every bit of every round before. A second tensor, a table
of rounds and sites, tells who was counted in each round and with which share.

The job's config holds `seed`, `floats`, `rounds`, `sites` (names) and `notes`: a folder on this
machine where each site task leaves a line, and where the program that runs the job leaves `pace`
(seconds that a site task takes) and `SITE.todo` (what that site does wrong in its next site task).
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated import Site, Tensors, Update, executor

Wrong: TypeAlias = Literal["another shape", "NaN", "raise", "another name", "no weight"]
WRONGS: tuple[Wrong, ...] = ("another shape", "NaN", "raise", "another name", "no weight")
"""What `SITE.todo` may hold."""

NUMBERS, COUNTED = "numbers", "counted"
PROGRESS = "progress.bin"
"""The file in the site's own state folder that each site task writes."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_ALSO_ODD = np.uint64(0xBF58476D1CE4E5B9)
_LONGEST_WAIT_S = 0.05


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Returns the model before the first round."""
    seed, floats = int(site.number("seed", 0)), int(site.number("floats", 1))
    rounds, sites = int(site.number("rounds", 1)), _names(site)
    return Update({NUMBERS: first(seed, floats), COUNTED: np.zeros((rounds, len(sites)))})


@executor
def train(model: Tensors, site: Site) -> Update:
    """Returns the hash of the received model, or something wrong if that was asked for."""
    at, notes, place = time.time(), Path(str(site.config["notes"])), _names(site).index(site.name)
    (site.state / PROGRESS).write_bytes(np.ascontiguousarray(model[NUMBERS][:4096]).data)
    line = {"site": site.name, "round": site.round, "pid": os.getpid(), "at": at}
    with (notes / "calls.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    _take_time(notes, at)
    counted = np.array(model[COUNTED])
    counted[site.round - 1, place] += 1
    tensors = {NUMBERS: hashed(model[NUMBERS], place, site.round), COUNTED: counted}
    return _spoilt(tensors, place + 1, notes / f"{site.name}.todo")


def first(seed: int, floats: int) -> NDArray[np.float64]:
    """Returns the numbers before the first round: `(floats,)`, whole, float64."""
    return np.random.default_rng(seed).integers(0, 1 << 21, floats).astype(np.float64)


def hashed(received: NDArray[np.float64], place: int, round: int) -> NDArray[np.float64]:
    """Returns a site's numbers for a round: whole, below 2**21, float64."""
    salt = np.uint64(((round << 8) + place + 1) * int(_ODD) & (1 << 64) - 1)
    bits = np.ascontiguousarray(received, np.float64).view(np.uint64) ^ salt
    bits *= _ODD
    bits ^= bits >> np.uint64(31)
    bits *= _ALSO_ODD
    return (bits >> np.uint64(43)).astype(np.float64)


def expected(seed: int, floats: int, rounds: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Returns the numbers after the last round, computed without any of the framework's code.

    Args:
        seed: Seed of the first numbers.
        floats: How many numbers there are.
        rounds: For each round, the places of the sites that contributed; the weight is place + 1.
    """
    numbers = first(seed, floats)
    for round, places in enumerate(rounds, start=1):
        total = np.zeros(floats, np.int64)
        for place in places:
            total += hashed(numbers, place, round).astype(np.int64) * (place + 1)
        numbers = total / sum(place + 1 for place in places)
    return numbers


def contributors(counted: NDArray[np.float64]) -> list[list[int]]:
    """Returns for each round the places of the sites that contributed.

    Raises:
        ValueError: a site was not counted exactly once, with its own weight.
    """
    rounds = [[int(place) for place in np.flatnonzero(row)] for row in counted]
    for number, (row, places) in enumerate(zip(counted, rounds, strict=True), start=1):
        total = sum(place + 1 for place in places)
        shares = [(place + 1) / total if place in places else 0.0 for place in range(len(row))]
        # Each later round averages the shares anew: a few units in the last place, for each.
        if not np.allclose(row, shares, rtol=0, atol=1e-9):
            raise ValueError(f"round {number}: the sites' shares are {row}, expected {shares}.")
    return rounds


def _names(site: Site) -> list[str]:
    names = site.config["sites"]
    assert isinstance(names, list)
    return [str(name) for name in names]


def _take_time(notes: Path, began: float) -> None:
    """Waits until the site task has taken as long as the file `pace` says, which may change."""
    while (left := began + float((notes / "pace").read_text() or 0) - time.time()) > 0:
        time.sleep(min(left, _LONGEST_WAIT_S))


def _spoilt(tensors: Mapping[str, NDArray[np.float64]], weight: float, todo: Path) -> Update:
    """Returns the update, or, once, what the file says instead."""
    try:
        wrong = todo.read_text()
        todo.unlink()
    except FileNotFoundError:
        return Update(tensors, weight=weight)
    numbers, counted = tensors[NUMBERS], tensors[COUNTED]
    match wrong:
        case "another shape":
            return Update({NUMBERS: numbers[:-1], COUNTED: counted}, weight=weight)
        case "NaN":
            numbers[len(numbers) // 2] = np.nan
            return Update({NUMBERS: numbers, COUNTED: counted}, weight=weight)
        case "another name":
            return Update({"other": numbers, COUNTED: counted}, weight=weight)
        case "no weight":
            return Update(tensors, weight=0)
        case _:
            raise ValueError("the scanner is off")
