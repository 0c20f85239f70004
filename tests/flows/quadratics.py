"""Executors of sites whose losses are quadratics with their own minima, in float64.

Site k minimizes F_k(w) = 1/2 sum_j h_kj (w_j - a_kj)^2 by `steps` full gradient steps of size `lr`.
Everything about it has a closed form.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from prefect_federated import Site, Tensors, Update, executor
from prefect_federated.control_variates import LocalControl, joined, option_of
from prefect_federated.kept import Kept

STEPS, LR = 5, 0.1
Vector = NDArray[np.float64]


def problem(site: str) -> tuple[Vector, Vector]:
    """Returns a site's curvatures h_k and minimum a_k, three of each."""
    random = np.random.default_rng(zlib.crc32(site.encode()))
    return random.uniform(0.2, 3.0, 3), random.normal(scale=5.0, size=3)


def weight(site: str) -> float:
    """Returns a site's number of examples: 10 for site-1, 20 for site-2, ..."""
    return 10.0 * int(site.rpartition("-")[2])


def optimum(sites: list[str]) -> Vector:
    """Returns the minimum of the sites' mean loss."""
    problems = [problem(site) for site in sites]
    curvature: Vector = np.sum([h for h, _ in problems], axis=0)
    weighted: Vector = np.sum([h * a for h, a in problems], axis=0)
    return weighted / curvature


def fixed_point(sites: list[str]) -> Vector:
    """Returns where FedAvg stalls: sites that make several steps pull by their own contraction.

    A site's model after its steps is a_k + (1 - lr h_k)^steps (w - a_k); the mean of these is w.
    """
    pulls = [(1 - (1 - LR * h) ** STEPS, a) for h, a in map(problem, sites)]
    strength: Vector = np.sum([pull for pull, _ in pulls], axis=0)
    weighted: Vector = np.sum([pull * a for pull, a in pulls], axis=0)
    return weighted / strength


@executor
def initialize(model: Tensors, site: Site) -> Update:
    return Update({"w": np.zeros(3)})


@executor
def train(model: Tensors, site: Site) -> Update:
    _fail_as_told(site)
    h, a = problem(site.name)
    start = np.asarray(model["w"])
    w, mu = start.copy(), site.number("mu", 0)
    for _ in range(STEPS):
        w -= LR * (h * (w - a) + mu * (w - start))
    name = "val_loss" if site.config.get("validates") else "loss"
    return Update({"w": w}, metrics={name: loss(start, site.name)})


@executor
def scaffold(received: Tensors, site: Site) -> Update:
    _fail_as_told(site)
    control = LocalControl(received, site)
    h, a = problem(site.name)
    w = np.asarray(control.model["w"]).copy()
    for _ in range(STEPS):
        w -= LR * (h * (w - a) + control.correction["w"])
    change = (
        control.option_2({"w": w}, STEPS, LR)
        if option_of(site) == 2
        else control.option_1({"w": h * (control.model["w"] - a)})
    )
    return Update(
        joined({"w": w}, change),
        weight=weight(site.name) if site.config.get("weigh_unequally") else 1.0,
        metrics={"loss": loss(control.model["w"], site.name)},
    )


@executor
def ditto(model: Tensors, site: Site) -> Update:
    kept = Kept(site.state, "personal")
    before = kept.newest_before(site.round)
    w = np.asarray(model["w"])
    v = (w if before is None else np.asarray(kept.read(before)["w"])).copy()
    h, a = problem(site.name)
    for _ in range(200):  # until it stands still
        v -= LR * (h * (v - a) + site.number("ditto_lambda", 0.1) * (v - w))
    update = train(model, site)
    kept.write(site.round, {"w": v}, after=before)
    metrics = {**update.metrics, "personal_loss": loss(v, site.name)}
    return Update(update.tensors, metrics=metrics)


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    return Update(metrics={"loss": loss(np.asarray(model["w"]), site.name)})


def _fail_as_told(site: Site) -> None:
    if site.name in str(site.config.get("raises_at", "")):
        raise ValueError("no rows")
    once = site.state / "failed"
    told = site.name in str(site.config.get("fails_once_at", ""))
    if told and site.config.get("fails_once_in") == site.round and not once.exists():
        once.touch()
        raise OSError("the disk is away")


def loss(w: Vector, site: str) -> float:
    h, a = problem(site)
    return float(0.5 * np.sum(h * (w - a) ** 2))
