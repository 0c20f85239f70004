"""An executor whose sites keep a count in their state folder, and may end their process.

The job's config says where and when: `{"dies_at": "site-3", "round": 2, "once": true}`.
"""

import os
import signal

import numpy as np

from prefect_federated import Site, Tensors, Update, executor


@executor
def initialize(model: Tensors, site: Site) -> Update:
    """Gives the model to begin with."""
    return Update({"w": np.zeros(3)})


@executor
def train(model: Tensors, site: Site) -> Update:
    """Adds the site's own number; tells how often the site has trained, and in which process."""
    _die_if_told(site)
    counter = site.state / "trained"
    count = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(count))
    step = sum(site.name.encode()) / 7
    return Update(
        {"w": np.asarray(model["w"]) + step},
        weight=count,
        metrics={"count": count, "process": os.getpid()},
    )


def _die_if_told(site: Site) -> None:
    if site.config.get("dies_at") != site.name or site.round < site.number("round", 1):
        return
    mark = site.state / "died"
    if site.config.get("once") and mark.exists():
        return
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
