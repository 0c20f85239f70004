"""Executors of the tests: linear regression by full-batch gradient steps, in float64.

The job's config makes sites misbehave: `{"raises_at": ["site-2"], "wrong_shape_at": [...]}`.
"""

import threading
import zlib

import numpy as np
from numpy.typing import NDArray

from prefect_federated import Site, Tensors, Update, executor, site_tasks
from prefect_federated.executors import TaskFunction

LR = 0.1
Matrix = NDArray[np.float64]


def rows(site: str) -> tuple[Matrix, Matrix]:
    """Returns a site's own data: another number of rows at each."""
    random = np.random.default_rng(zlib.crc32(site.encode()))
    x = random.normal(size=(int(random.integers(20, 200)), 4))
    return x, x @ np.array([1.0, -2.0, 3.0, 0.5]) + random.normal(scale=0.1, size=len(x))


def start() -> dict[str, Matrix]:
    """Returns the model before training."""
    return {"slopes": np.zeros(4), "offset": np.zeros(())}


def step(model: Tensors, x: Matrix, y: Matrix) -> tuple[dict[str, Matrix], float]:
    """Returns the model after one step on all rows, and the loss before."""
    slopes = np.asarray(model["slopes"], np.float64)
    offset = np.asarray(model["offset"], np.float64)
    error = x @ slopes + offset - y
    after = {
        "slopes": slopes - LR * 2 * x.T @ error / len(y),
        "offset": np.asarray(offset - LR * 2 * error.mean()),
    }
    return after, float(np.mean(error**2))


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Gives the model to begin with."""
    return Update(start())


@executor
def train(model: Tensors, site: Site) -> Update:
    """Makes one step on the site's rows."""
    if site.name in str(site.config.get("raises_at", "")):
        raise ValueError(f"no rows in round {site.round}\nsecret")
    if site.name in str(site.config.get("wrong_shape_at", "")):
        return Update({"slopes": np.zeros(5), "offset": np.zeros(())})
    x, y = rows(site.name)
    after, loss = step(model, x, y)
    if site.name in str(site.config.get("poison_at", "")):
        after = {name: -1e3 * array - 1e3 for name, array in after.items()}
    return Update(after, weight=len(y), metrics={"loss": loss})


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures the model on the site's rows."""
    x, y = rows(site.name)
    return Update(metrics={"loss": step(model, x, y)[1]}, weight=len(y))


@executor
def loop() -> None:
    """Trains in the loop form."""
    for task in site_tasks(initial=start()):
        x, y = rows(task.site.name)
        after, loss = step(task.model, x, y)
        task.reply(after, weight=len(y), metrics={"loss": loss})


@executor
def no_data() -> None:
    """Ends before it asks for its first task."""
    raise FileNotFoundError("rows.csv")


@executor
def slow_loop() -> None:
    """Asks for its first task when all sites of the job have got here."""
    _gathered.wait(30)
    loop()


_gathered = threading.Barrier(3)


@executor
def broken_loop() -> None:
    """Ends in the middle of its first task at one site."""
    for task in site_tasks(initial=start()):
        if task.site.name == "site-2":
            raise MemoryError("the second site is too small")
        task.reply(task.model)


class Growing:
    """Executors of a model that grows by 1 a round, and is at its best at 2."""

    def federated_executors(self) -> dict[str, TaskFunction]:
        return {"initialize": self._start, "train": self._grow, "evaluate": self._measure}

    def _start(self, model: Tensors, site: Site) -> Update:
        return Update({"w": np.zeros(1)})

    def _grow(self, model: Tensors, site: Site) -> Update:
        return Update({"w": np.asarray(model["w"]) + 1})

    def _measure(self, model: Tensors, site: Site) -> Update:
        return Update(metrics={"loss": float((np.asarray(model["w"])[0] - 2) ** 2)})


growing = Growing()
