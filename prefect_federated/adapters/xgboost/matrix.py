"""A site's rows as XGBoost takes them, kept while a job runs."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.messages import Tensor
from prefect_federated.tabular.rows import Part, load_rows

if TYPE_CHECKING:
    import xgboost

_MOST_KEPT = 64


@dataclass
class Matrices:
    """One site's rows in one job.

    Args:
        train: Rows that trees are grown on.
        validation: Training rows that are held out for early stopping; None where there is none.
        test: Rows to measure on.
        fitted: Their parts, by the same names.
    """

    train: "xgboost.DMatrix"
    validation: "xgboost.DMatrix | None"
    test: "xgboost.DMatrix"
    fitted: dict[str, Part]
    seen: dict[str, list[int]] = field(default_factory=dict)
    """Matrix -> names of the rounds whose trees are in its margins."""


def matrix(part: Part, threads: int = 1, *, by_columns: bool = False) -> "xgboost.DMatrix":
    """Returns rows as XGBoost takes them: NaN is missing, categories have the schema's numbers.

    Rows of one query must stand together: see `by_query`.

    Args:
        part: The rows.
        threads: Of XGBoost's.
        by_columns: Whether other sites have further columns of the same rows; then it is a
            collective call.
    """
    import xgboost
    from xgboost.core import DataSplitMode

    group = {} if part.group is None else {"qid": part.group}
    label = part.label if len(part.label) else None
    return xgboost.DMatrix(
        part.features, label, enable_categorical=True, nthread=threads,
        data_split_mode=DataSplitMode.COL if by_columns else DataSplitMode.ROW, **group,
    )  # fmt: skip


def by_query(part: Part) -> Part:
    """Returns the rows sorted by their query, each query's in their own order."""
    return part if part.group is None else part.of(np.argsort(part.group, kind="stable"))


def matrices(site: Site) -> Matrices:
    """Returns the site's rows, made once a job and process.

    Args:
        site: Its config holds the question, the schema, and `validation_share`.

    Raises:
        ConfigurationError: too few rows are left to grow trees on.
    """
    share = site.number("validation_share", 0)
    key = (str(site.state), site.name, repr(site.config.get("tabular")), share)
    with _lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
        made = _make(site, share)
        with _lock:
            _kept[key] = made
            while len(_kept) > _MOST_KEPT:
                _locks.pop(_kept.popitem(last=False)[0], None)
    return made


_kept: "OrderedDict[tuple[object, ...], Matrices]" = OrderedDict()
_locks: dict[tuple[object, ...], threading.Lock] = {}
_lock = threading.Lock()


def _make(site: Site, share: float) -> Matrices:
    rows, threads = load_rows(site), threads_of(site)
    train, test = by_query(rows.train), by_query(rows.test)
    held = _held_out(train, share, site.seed)
    validation = train.of(held) if held.any() else None
    train = train.of(~held)
    if not train.rows:
        raise ConfigurationError(
            f"{site.name} has no rows to grow trees on beside those that are held out; leave it "
            "out, or hold out fewer."
        )
    parts = {"train": train, "test": test}
    parts |= {} if validation is None else {"validation": validation}
    return Matrices(
        matrix(train, threads), None if validation is None else matrix(validation, threads),
        matrix(test, threads), parts,
    )  # fmt: skip


def _held_out(part: Part, share: float, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Returns which training rows are held out: whole queries, and the same in each round."""
    of = np.arange(part.rows) if part.group is None else part.group
    units = np.unique(of)
    number = min(round(len(units) * share), len(units) - 1) if len(units) else 0
    chosen = np.random.default_rng(seed).permutation(units)[:number]
    return np.isin(of, chosen)


def threads_of(site: Site) -> int:
    """Returns how many threads XGBoost may use: the job's `threads`, 1 by default.

    Raises:
        ConfigurationError: it is no whole number above 0.
    """
    threads = site.number("threads", 1)
    if threads < 1 or threads != int(threads):
        raise ConfigurationError(f"config 'threads' is {threads:g}; write a whole number above 0.")
    return int(threads)


def booster(raw: Tensor, threads: int = 1) -> "xgboost.Booster":
    """Returns a booster from its UBJSON.

    Raises:
        UpdateRejected: this XGBoost cannot read it.
    """
    import xgboost

    made = xgboost.Booster({"nthread": threads})
    try:
        made.load_model(bytearray(raw.tobytes()))
    except xgboost.core.XGBoostError as error:
        raise UpdateRejected(
            f"XGBoost {xgboost.__version__} cannot read the model: {str(error).splitlines()[0]}. "
            "Install the same version at the server and all sites."
        ) from error
    return made
