"""An executor whose model is a counter, and which scores it as the job's config says.

`{"scores": {"0": 0.1, "1": 0.5}}`: the score of the model after round 0, 1, ...; it comes with the
updates (`val_score`) if `{"validates": true}`, and always with "evaluate". Sites weigh 1, 2, 3, ...
by their place in the alphabet; the first one scores 1 less times `spread`.
"""

import numpy as np

from prefect_federated import Site, Tensors, Update, executor


def _score(model: Tensors, site: Site) -> float:
    scores = site.config.get("scores", {})
    assert isinstance(scores, dict)
    reached = float(str(scores[str(int(np.asarray(model["rounds"]).item()))]))
    return reached - (site.number("spread", 0) if site.name == "a" else 0)


def _place(site: Site) -> int:
    return "abcde".index(site.name) + 1


@executor
def initialize(model: Tensors, site: Site) -> Update:
    return Update({"rounds": np.zeros(())})


@executor
def train(model: Tensors, site: Site) -> Update:
    metrics = {"val_score": _score(model, site)} if site.config.get("validates") else {}
    after = np.asarray(np.asarray(model["rounds"]) + 1)
    return Update({"rounds": after}, metrics=metrics, metrics_weight=_place(site))


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    return Update(metrics={"score": _score(model, site)}, weight=_place(site))
