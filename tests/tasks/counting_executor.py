"""An executor that says in which order and with what its sites were called.

A site adds its place (a is 1, b is 2, ...) to the model's `sum`. The job's config makes sites fail
(`{"fails": ["b"]}`, `{"fails_once": ["b"], "fails_once_in": 2}`) or wait (`{"waits": ["c"]}`) for
the event of their name in `gates`.
"""

import threading

import numpy as np

from prefect_federated import Site, Tensors, Update, executor

gates: dict[str, threading.Event] = {name: threading.Event() for name in "abcde"}


@executor
def initialize(model: Tensors, site: Site) -> Update:
    return Update({"sum": np.zeros(1)})


@executor
def train(model: Tensors, site: Site) -> Update:
    if site.name in str(site.config.get("waits", "")):
        assert gates[site.name].wait(20), f"{site.name} was never let go"
    once = site.state / "failed"
    is_time = site.round == site.config.get("fails_once_in", site.round)
    if site.name in str(site.config.get("fails_once", "")) and is_time and not once.exists():
        once.touch()
        raise OSError("the disk is away")
    if site.name in str(site.config.get("fails", "")):
        raise OSError("no disk")
    place = "abcde".index(site.name) + 1
    total = np.asarray(model["sum"]) + place
    return Update(
        {"sum": total}, weight=place, metrics={"sum": float(total[0]), "round": site.round}
    )


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    return Update(metrics={"sum": float(np.asarray(model["sum"])[0])})
