"""Two sites: the first answers at once, the second when the first was asked for the third step."""

import threading

import numpy as np

from prefect_federated import Site, Tensors, Update, executor

_third = threading.Event()
_answered = threading.Event()


@executor
def initialize(model: Tensors, site: Site) -> Update:
    return Update({"w": np.zeros(1)})


@executor
def train(model: Tensors, site: Site) -> Update:
    if site.name == "site-2":
        assert _third.wait(20)
        if site.round > 1:
            _answered.set()
            raise OSError("it answers once")
        return Update({"w": np.asarray(model["w"]) + 100})
    if site.round == 3:  # until the other's update has made step 3, and it was asked again
        _third.set()
        assert _answered.wait(20)
    return Update({"w": np.asarray(model["w"]) + 1})
