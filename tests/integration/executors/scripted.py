"""An executor that does what a test's script says: it waits at a gate, fails, or answers wrongly.

The model is a table of rounds and sites. A site that trains adds 1 in its own cell, so the averaged
model tells for each round which sites were counted, with which share, and how often.

The job's config holds `sites` (their names), `rounds`, `notes` (a folder on this machine, where
each call leaves a line and where gates are opened) and `script`: "2" (all sites in round 2) or
"site-1 2" (one site) -> what to do.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from prefect_federated import Site, Tensors, Update, executor


@executor
def initialize(model: Tensors, site: Site) -> Update:
    sites = site.config["sites"]
    assert isinstance(sites, list)
    return Update({"counted": np.zeros((int(site.number("rounds", 0)), len(sites)))})


@executor
def train(model: Tensors, site: Site) -> Update:
    sites, script = site.config["sites"], site.config["script"]
    assert isinstance(sites, list)
    assert isinstance(script, dict)
    notes = Path(str(site.config["notes"]))
    with (notes / "calls.jsonl").open("a") as file:
        call = {"site": site.name, "round": site.round, "pid": os.getpid(), "at": time.time()}
        file.write(json.dumps(call) + "\n")
    counted = np.array(model["counted"])
    counted[site.round - 1, sites.index(site.name)] += 1
    what = script.get(f"{site.name} {site.round}", script.get(str(site.round), "train"))
    if what == "wait at the gate":
        while not (notes / f"open-{site.round}").exists():
            time.sleep(0.02)
    elif what == "die once" and not (notes / f"died-{site.name}").exists():
        (notes / f"died-{site.name}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        print("the scanner's own words", file=sys.stderr)
        raise ValueError("the scanner is off\nsecret: patient 4711")
    elif what == "answer in another shape":
        counted = counted[:, :1]
    elif what == "answer with NaN":
        counted[0, 0] = np.nan
    return Update(
        {"counted": counted},
        weight=sites.index(site.name) + 1,
        metrics={"loss": 1 / site.round},
    )
