"""The built-in executor of statistics, but for sites that are named after what they send."""

import json

from prefect_federated.executors import Site, executor
from prefect_federated.messages import Tensors, Update
from prefect_federated.statistics import site as real
from prefect_federated.statistics.question import KEY

_LIES = {
    "no-answer": {},
    "no-json": {KEY: b"\x00 rows"},
    "other-schema": {KEY: json.dumps({"splits": {}, "rows": 3}).encode()},
    "below-zero": {
        KEY: json.dumps(
            {
                "splits": {
                    "all": {
                        "rows": 9,
                        "columns": {
                            "age": {"kind": "numeric", "summary": {"count": 9, "variance": -1}}
                        },
                    }
                }
            }
        ).encode()
    },
}


@executor
def describe(model: Tensors, site: Site) -> Update:
    """Answers, or lies."""
    if site.name in _LIES:
        return Update(blobs=_LIES[site.name])
    return real.describe(model, site)


@executor
def count(model: Tensors, site: Site) -> Update:
    """Answers, or breaks off."""
    if site.name == "breaks-off":
        raise OSError("the disk is gone")
    return real.count(model, site)


@executor
def refine(model: Tensors, site: Site) -> Update:
    """Answers."""
    return real.refine(model, site)
