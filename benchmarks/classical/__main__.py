"""How near federated models of tables come to pooled ones, and how long they take.

    python -m benchmarks.classical --json FILE
    python -m benchmarks.classical --only kmeans ridge --seeds 3

Each row of the JSON is a kind of model. Beside its own figure stands that of one model of the
pooled rows (`pooled_`), and the mean of models of one site's rows each (`alone_`), on the same test
rows. Where there is something random (divisions, seeds), figures are means over `--seeds` seeds,
`_by_seed` has each. `machine` says what it ran on, `load_1min` the load when the row began.

xgboost_histogram, xgboost_bagging: breast_cancer at 3 sites, 20 rounds. `total_s` lasts from the
    start of a fresh process, `prefect-federated simulate`, to its end: imports, an empty Prefect
    database, the models of each site alone, the card; the sites' files are there before. `auc` is
    on 171 rows, stratified, that every site has as its test split. `identical`: the bytes of the
    model are those of XGBoost's own collective over the same files, for every seed.
census_histogram: KDD census income at 4 sites, 100 rounds, one thread a site; without models alone
    and SHAP values, which XGBoost's own collective does not compute either.
    `collective_s` is XGBoost's own collective in 4 processes on the same files with as many
    threads, from their start to their end; `ratio` is `total_s` over it.
svm_support_vectors, svm_fourier: breast_cancer at 3 sites, same split; accuracy.
kmeans: `inertia_ratio` over pooled scikit-learn with as many restarts, of all rows at the centres
    found; the largest of all seeds and tables. `rises` counts rounds after which it was higher.
ridge, logistic: `max_relative_error` of coefficients, of standard errors too where there is no
    penalty, against numpy and statsmodels on the pooled rows; the largest of all seeds.
heart_logistic, heart_xgboost: heart disease at its four hospitals, each with 30 % of its rows to
    measure on. `alone_accuracy` is of each hospital's model on its own test rows, weighted by
    them; `auc` and `alone_auc` are over the test rows of all hospitals.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import cyclopts

from benchmarks.classical.linear import heart_logistic, kmeans, logistic, ridge
from benchmarks.classical.runs import Bench, Timed
from benchmarks.classical.svm import svm_fourier, svm_support_vectors
from benchmarks.classical.trees import (
    census_histogram,
    heart_xgboost,
    time_bagging,
    time_census,
    time_histogram,
    xgboost_bagging,
    xgboost_histogram,
)
from benchmarks.machine import describe_machine

TIMED: Mapping[str, Callable[[Path], Timed]] = {
    "xgboost_histogram": time_histogram,
    "xgboost_bagging": time_bagging,
    "census_histogram": time_census,
}
"""Rows with a time: it is measured first, while this process has no Prefect server yet."""

ROWS: Mapping[str, Callable[[Bench], dict[str, object]]] = {
    "xgboost_histogram": xgboost_histogram,
    "xgboost_bagging": xgboost_bagging,
    "census_histogram": census_histogram,
    "svm_support_vectors": svm_support_vectors,
    "svm_fourier": svm_fourier,
    "kmeans": kmeans,
    "ridge": ridge,
    "logistic": logistic,
    "heart_logistic": heart_logistic,
    "heart_xgboost": heart_xgboost,
}


def main(
    *,
    seeds: Annotated[int, cyclopts.Parameter(help="Divisions and seeds: 0, 1, ...")] = 10,
    only: Annotated[
        tuple[str, ...], cyclopts.Parameter(help="Rows to measure.", consume_multiple=True)
    ] = (),
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Measure the rows, print them as JSON, and write each to FILE when it is done."""
    if unknown := [name for name in only if name not in ROWS]:
        raise SystemExit(f"classical: no row {unknown[0]!r}; there are {', '.join(ROWS)}.")
    if seeds < 1:
        raise SystemExit("classical: --seeds takes 1 or more.")
    folder = Path(tempfile.mkdtemp(prefix="prefect-federated-bench-"))
    # registered before the Prefect server of the simulations, so that the server ends before
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    packages = {name: version(name) for name in ("xgboost", "scikit-learn", "pandas")}
    found: dict[str, object] = {"machine": describe_machine(), "packages": packages, "seeds": seeds}
    for name, row in measure(folder, [n for n in ROWS if not only or n in only], seeds):
        print(name, json.dumps(row, indent=2), flush=True)
        found[name] = row
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(found, indent=2) + "\n")


def measure(
    folder: Path, names: Sequence[str], seeds: int
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields each row with its name when it is measured.

    Args:
        folder: For files; Prefect's, too, if it is not imported yet.
        names: Of the rows.
        seeds: How many.
    """
    jobs, loads = {}, {}
    for name in names:
        if name in TIMED:
            own = folder / name
            own.mkdir()
            loads[name] = os.getloadavg()[0]
            jobs[name] = TIMED[name](own)
    os.environ["PREFECT_HOME"] = str(folder / "prefect")  # before Prefect is imported
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    bench = Bench(folder, seeds, jobs)
    for name in names:
        load = loads.get(name, os.getloadavg()[0])
        yield name, {"load_1min": round(load, 2), **ROWS[name](bench)}


if __name__ == "__main__":
    cyclopts.run(main)
