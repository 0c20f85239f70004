"""Rows of `benchmarks.classical` for support vector machines: against scikit-learn's SVC."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.classical import data as tables
from benchmarks.classical.reference import svm_accuracy
from benchmarks.classical.runs import Bench, over_seeds, simulated
from prefect_federated import load_fitted
from prefect_federated.messages import JsonValue


def svm_support_vectors(bench: Bench) -> dict[str, object]:
    """Compares an SVM of all sites' support vectors with one of the pooled rows."""
    policy = tables.ROWS_MAY_LEAVE
    return _row(bench, policy, method="support_vectors", share_support_vectors=True)


def svm_fourier(bench: Bench) -> dict[str, object]:
    """Compares a federated linear SVM in Fourier features with a kernel SVM of pooled rows."""
    return _row(bench, {}, method="fourier")


def _row(bench: Bench, policy: Mapping[str, object], **parameters: JsonValue) -> dict[str, object]:
    joint, pooled, alone = [], [], []
    for seed in range(bench.seeds):
        rows, folder = tables.cancer(seed), bench.new_folder()
        data = tables.write(folder / "data", rows, policy)
        done = simulated("svm", data, folder / "output", label=rows.label, seed=seed, **parameters)
        model: Any = load_fitted(done.path)
        predicted = model.predict(rows.tests.drop(columns=rows.label))
        joint.append(float((predicted == rows.tests[rows.label]).mean()))
        pooled.append(svm_accuracy(rows.pooled, rows.tests, rows.label))
        own = [svm_accuracy(part, rows.tests, rows.label) for part in rows.train.values()]
        alone.append(float(np.mean(own)))
    named = (("accuracy", joint), ("pooled_accuracy", pooled), ("alone_accuracy", alone))
    row: dict[str, object] = {
        "accuracy_minus_pooled": round(float(np.mean(joint) - np.mean(pooled)), 5)
    }
    for name, values in named:
        row |= over_seeds(name, values)
    return row
