"""Rows of `benchmarks.classical` for XGBoost: against pooled boosters, and its own collective."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.classical import data as tables
from benchmarks.classical.collective import Boosting, own_collective
from benchmarks.classical.data import Divided
from benchmarks.classical.hospitals import by_hospital
from benchmarks.classical.runs import Bench, Timed, over_seeds, simulated, timed
from prefect_federated import load_fitted

ROUNDS = 20
CENSUS_ROUNDS = 100
THREADS = 1
"""Threads of each site, and of each process of XGBoost's own collective."""

_PARAMETERS = {
    "objective": "binary:logistic", "eta": 0.3, "max_depth": 6, "tree_method": "hist",
    "nthread": THREADS, "seed": 0, "seed_per_iteration": True,
}  # fmt: skip


def time_histogram(folder: Path) -> Timed:
    """Times the histogram job on breast_cancer."""
    return _time_cancer("xgboost_histogram", folder)


def time_bagging(folder: Path) -> Timed:
    """Times the bagging job on breast_cancer."""
    return _time_cancer("xgboost_bagging", folder)


def _time_cancer(flow: str, folder: Path) -> Timed:
    data = tables.write(folder / "data", tables.cancer(0))
    return timed(flow, data, folder, label="benign", rounds=ROUNDS)


def time_census(folder: Path) -> Timed:
    """Times the histogram job on the census, if it can be fetched."""
    try:
        rows = tables.census()
    except tables.CensusUnavailable as error:
        return Timed(skipped=str(error))
    data = tables.write(folder / "data", rows, tables.OPEN)
    return timed(
        "xgboost_histogram", data, folder, label=rows.label, rounds=CENSUS_ROUNDS,
        compare_alone=False, explain=False, config={"threads": THREADS},
    )  # fmt: skip


def xgboost_histogram(bench: Bench) -> dict[str, object]:
    """Compares histogram boosting with pooled boosters and XGBoost's own collective."""
    row = _cancer("xgboost_histogram", bench, is_compared=True)
    same = row.pop("same")
    assert isinstance(same, list)
    return {"identical": all(same), "identical_models": len(same), **row}


def xgboost_bagging(bench: Bench) -> dict[str, object]:
    """Compares tree bagging with pooled boosters."""
    return _cancer("xgboost_bagging", bench, is_compared=False)


def _cancer(flow: str, bench: Bench, *, is_compared: bool) -> dict[str, object]:
    joint, pooled, alone, same = [], [], [], []
    for seed in range(bench.seeds):
        rows = tables.cancer(seed)
        if seed == 0 and flow in bench.timed:
            model, data = bench.timed[flow].model, bench.timed[flow].data
        else:
            folder = bench.new_folder()
            data = tables.write(folder / "data", rows)
            done = simulated(flow, data, folder / "output", label=rows.label, rounds=ROUNDS)
            model = Path(done.path)
        boosting = _boosting(rows, ROUNDS)
        joint.append(_auc(load_fitted(model), boosting, rows))
        pooled.append(_auc(boosting.train(rows.pooled), boosting, rows))
        own = [boosting.train(part) for part in rows.train.values()]
        alone.append(float(np.mean([_auc(each, boosting, rows) for each in own])))
        if is_compared:
            expected, _ = own_collective(data, boosting, bench.new_folder())
            same.append((model / "model.ubj").read_bytes() == expected)
    figures: dict[str, object] = {"same": same} if is_compared else {}
    if flow in bench.timed:
        figures["total_s"] = round(bench.timed[flow].total_s, 2)
    for name, values in (("auc", joint), ("pooled_auc", pooled), ("alone_auc", alone)):
        figures |= over_seeds(name, values)
    return figures


def census_histogram(bench: Bench) -> dict[str, object]:
    """Compares the timed job on the census with a pooled booster and XGBoost's own collective."""
    job = bench.timed["census_histogram"]
    if job.skipped:
        return {"skipped": job.skipped}
    rows = tables.census()
    boosting = _boosting(rows, CENSUS_ROUNDS)
    expected, collective_s = own_collective(job.data, boosting, bench.new_folder())
    joint = _auc(load_fitted(job.model), boosting, rows)
    pooled = _auc(boosting.train(rows.pooled), boosting, rows)
    own = [boosting.train(part) for part in rows.train.values()]
    return {
        "train_rows": len(rows.pooled),
        "test_rows": len(rows.tests),
        "auc": round(joint, 6),
        "pooled_auc": round(pooled, 6),
        "auc_minus_pooled": round(joint - pooled, 6),
        "alone_auc": round(float(np.mean([_auc(each, boosting, rows) for each in own])), 6),
        "total_s": round(job.total_s, 2),
        "collective_s": round(collective_s, 2),
        "ratio": round(job.total_s / collective_s, 2),
        "identical": (job.model / "model.ubj").read_bytes() == expected,
    }


def heart_xgboost(bench: Bench) -> dict[str, object]:
    """Compares one booster of all hospitals with each hospital's own."""

    def fit(rows: Divided, of: str | None) -> Any:
        boosting = _boosting(rows, ROUNDS)
        if of is None:
            folder = bench.new_folder()
            data = tables.write(folder / "data", rows)
            done = simulated(
                "xgboost_histogram", data, folder / "output", label=rows.label, rounds=ROUNDS
            )
            model: Any = load_fitted(done.path)
        else:
            model = boosting.train(rows.train[of] if of else rows.pooled)
        return lambda given: model.predict(boosting.matrix(given))

    return by_hospital(bench.seeds, fit)


def _boosting(rows: Divided, rounds: int) -> Boosting:
    features = [name for name in rows.tests.columns if name != rows.label]
    return Boosting(_PARAMETERS, rounds, rows.label, features, rows.categories)


def _auc(model: Any, boosting: Boosting, rows: Divided) -> float:
    predicted = model.predict(boosting.matrix(rows.tests))
    return float(roc_auc_score(rows.tests[rows.label], predicted))
