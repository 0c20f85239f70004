"""Heart disease at its four hospitals: one model of all, of pooled rows, and of each one's own."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks.classical.data import Divided, heart
from benchmarks.classical.runs import over_seeds

Predict: TypeAlias = Callable[[pd.DataFrame], Any]
POOLED = ""


def by_hospital(seeds: int, fit: Callable[[Divided, str | None], Predict]) -> dict[str, object]:
    """Returns the figures of one row, means over seeds.

    Args:
        seeds: How many divisions into training and test rows.
        fit: Returns rows -> probability of disease: of the federated model for None, of the pooled
            rows for "", of a hospital's own for its name.
    """
    figures: dict[str, list[float]] = defaultdict(list)
    hospitals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        rows = heart(seed)
        truth = rows.tests[rows.label].to_numpy()
        for prefix, of in (("", None), ("pooled_", POOLED)):
            predict = fit(rows, of)
            found = np.asarray(predict(rows.tests))
            figures[f"{prefix}accuracy"].append(float(((found > 0.5) == truth).mean()))
            figures[f"{prefix}auc"].append(float(roc_auc_score(truth, found)))
            for site, own in rows.test.items():
                hospitals[site][f"{prefix}accuracy"].append(_accuracy(predict, own, rows.label))
        alone, everywhere = 0.0, []
        for site, own in rows.test.items():
            predict = fit(rows, site)
            accuracy = _accuracy(predict, own, rows.label)
            hospitals[site]["alone_accuracy"].append(accuracy)
            alone += accuracy * len(own) / len(truth)
            everywhere.append(float(roc_auc_score(truth, np.asarray(predict(rows.tests)))))
        figures["alone_accuracy"].append(alone)
        figures["alone_auc"].append(float(np.mean(everywhere)))
    row: dict[str, object] = {}
    for name, values in figures.items():
        row |= over_seeds(name, values)
    sites = heart(0).test
    row["sites"] = {
        site: {
            "test_rows": len(sites[site]),
            **{name: round(float(np.mean(values)), 4) for name, values in its.items()},
        }
        for site, its in hospitals.items()
    }
    return row


def _accuracy(predict: Predict, rows: pd.DataFrame, label: str) -> float:
    return float(((np.asarray(predict(rows)) > 0.5) == rows[label].to_numpy()).mean())
