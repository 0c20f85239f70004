"""Horizontal XGBoost in the simulator, against XGBoost's own collective over the same shards."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from prefect_federated import simulate
from prefect_federated.adapters.xgboost.parameters import resolve
from prefect_federated.errors import ConfigurationError, QuorumNotReached, UpdateRejected
from prefect_federated.flows.xgboost_histogram import xgboost_histogram
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.tabular import FittedRef
from tests.adapters.xgboost.shards import own_collective
from tests.agents.network import eventually
from tests.flows import losing_executor
from tests.flows.tables import read_all, write_sites

pytestmark = pytest.mark.usefixtures("prefect_api")

SITES = ["east", "north", "west"]
TEXT = "ward"
LOSING: dict[str, Any] = {"executor": "tests.flows.losing_executor", "snapshot_every": 2}


def rows_of(count: int, seed: int) -> pd.DataFrame:
    """Numbers, a category, missing values, and labels of each objective."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(random.normal(size=(count, 5)), columns=list("abcde"))
    frame[TEXT] = random.choice(["u", "v", "w"], count)
    score = frame["a"] * frame["b"] + frame["c"] + (frame[TEXT] == "v")
    frame["sick"] = np.where(score + 0.3 * random.normal(size=count) > 0, "yes", "no")
    frame["grade"] = np.digitize(score, [-1, 1])
    frame["stay"] = score + random.normal(size=count)
    frame["visits"] = random.poisson(np.exp(0.3 * score))
    frame["query"] = random.integers(0, max(count // 8, 1), count)
    frame.loc[random.random(count) < 0.1, "a"] = np.nan
    return frame


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = zip(SITES, [300, 200, 125], strict=True)
    frames = {site: rows_of(n, seed) for seed, (site, n) in enumerate(counts)}
    return write_sites(tmp_path_factory.mktemp("rows"), frames)


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """No thread of a training is there any more when its job has ended."""
    yield
    eventually(lambda: not trainings(), "the trainings' threads end")


def trainings() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("xgboost")]


def run(data: Path, label: str = "sick", **parameters: Any) -> tuple[FittedRef, bytes]:
    features = [*"abcde", TEXT]
    result = simulate(
        xgboost_histogram, data=data,
        parameters={
            "dataset": "made", "label": label, "features": features, "rounds": 6, "max_depth": 4,
            "compare_alone": False, "explain": False, **parameters,
        },
    )  # fmt: skip
    assert isinstance(result.returned, FittedRef)
    return result.returned, (Path(result.returned.path) / "model.ubj").read_bytes()


def matrix(
    data: Path, site: str, split: str, label: str, group: str | None = None
) -> xgboost.DMatrix:
    rows = read_all(data, split, [site])
    if group is not None:
        rows = rows.sort_values(group, kind="stable")
    features = rows[[*"abcde", TEXT]].astype({TEXT: pd.CategoricalDtype(["u", "v", "w"])})
    values = rows[label].map({"no": 0, "yes": 1}) if label == "sick" else rows[label]
    qid = None if group is None else np.unique(rows[group], return_inverse=True)[1]
    return xgboost.DMatrix(features, values, qid=qid, enable_categorical=True, nthread=1)


def own(
    data: Path, objective: str, label: str, group: str | None = None, rounds: int = 6,
    sites: list[str] = SITES, **more: JsonValue,
) -> tuple[bytes, dict[str, dict[str, list[float]]]]:  # fmt: skip
    parameters = {
        **resolve("histogram", objective, {}, classes=3, max_depth=4),
        "nthread": 1, "seed": 0, "seed_per_iteration": True, **more,
    }  # fmt: skip

    def shard(site: str) -> Callable[[], Any]:
        return lambda: (
            matrix(data, site, "train", label, group),
            [(matrix(data, site, "test", label, group), "test")],
        )

    return own_collective(parameters, rounds, [shard(site) for site in sites])


@pytest.mark.parametrize(
    ("objective", "label", "group", "more"),
    [
        ("binary", "sick", None, {}),
        ("multiclass", "grade", None, {}),
        ("regression", "stay", None, {"subsample": 0.7, "colsample_bytree": 0.8}),
        ("poisson", "visits", None, {}),
        ("ranking", "visits", "query", {}),
    ],
)
def test_the_model_is_byte_for_byte_that_of_xgboosts_own_collective(
    data: Path, objective: str, label: str, group: str | None, more: dict[str, Any]
) -> None:
    about: dict[str, Any] = {"base_score": 0.25, "seed": 3} if more else {}
    reference, model = run(data, label, objective=objective, group=group, xgboost=more, **about)
    expected, told = own(data, objective, label, group, **more, **about)
    assert model == expected
    (metric, values), *_ = told["test"].items()
    rows = [row for row in reference.history if row["kind"] == "boost"]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["sites"] for row in rows} == {"3/3"}
    assert [row[f"test-{metric}"] for row in rows] == pytest.approx(values, rel=1e-6)


def test_early_stopping_goes_by_held_out_rows_of_all_sites_and_keeps_the_best(data: Path) -> None:
    wanted: dict[str, Any] = {"rounds": 60, "eta": 0.8, "early_stopping_rounds": 3}
    wanted["eval_metric"] = ["auc", "logloss"]
    reference, model = run(data, **wanted, compare_alone=True)
    assert all(site.alone["log_loss"] < 0.8 for site in reference.sites)  # 60 rounds learn noise
    rows = [row for row in reference.history if row["kind"] == "boost"]
    losses = [row["validation-logloss"] for row in rows]
    best = 1 + losses.index(min(losses))  # type: ignore[type-var]
    assert len(losses) == best + 3 < 60
    booster = xgboost.Booster(model_file=bytearray(model))
    assert booster.num_boosted_rounds() == best
    page = (Path(reference.path) / "card.md").read_text()
    assert "Early stopping by logloss of 20% of the training rows" in page
    assert f"round {best} of {best + 3} is kept" in page


def test_a_lost_site_is_waited_for_and_the_model_is_as_if_nothing_had_been(data: Path) -> None:
    config = {"lost": {"site": "north", "round": 4}}
    reference, model = run(data, **LOSING, config=config)
    assert model == own(data, "binary", "sick")[0]
    assert len(losing_executor.seen["north"]) == 3
    rows = [row for row in reference.history if row["kind"] == "boost"]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_the_others_go_on_without_a_lost_site_where_the_job_says_so(data: Path) -> None:
    losing = {**LOSING, "quorum": 0.6}
    config = {"lost": {"site": "north", "round": 4, "times": 9}}
    reference, model = run(data, **losing, config=config, on_lost="continue")
    rows = [row for row in reference.history if row["kind"] == "boost"]
    assert [row["sites"] for row in rows] == ["3/3", "3/3", "2/2", "2/2", "2/2", "2/2"]
    whole, _ = own(data, "binary", "sick", rounds=2)
    first_two = xgboost.Booster(model_file=bytearray(model))[:2]
    assert (
        "north has grown trees in 2 of 6 rounds." in (Path(reference.path) / "card.md").read_text()
    )
    assert first_two.get_dump() == xgboost.Booster(model_file=bytearray(whole)).get_dump()


def test_a_model_that_a_site_damages_is_refused_before_anybody_loads_it(data: Path) -> None:
    config = {"lost": {"damages": True}}
    with pytest.raises(UpdateRejected, match="site 'east' sent a model that is no booster"):
        run(data, **LOSING, config=config)


def test_a_job_ends_without_its_quorum_and_with_a_site_that_is_lost_again_and_again(
    data: Path,
) -> None:
    losing = {**LOSING, "quorum": 0.9}
    config = {"lost": {"site": "north", "round": 4, "times": 9}}
    with pytest.raises(QuorumNotReached, match="2 of 3 sites are left, the quorum is 3"):
        run(data, **losing, config=config, on_lost="continue")
    with pytest.raises(QuorumNotReached, match=r"3 attempts in a row.*north.*the power is out"):
        run(data, **losing, config=config)


def test_what_cannot_work_is_refused_with_its_reason(data: Path) -> None:
    with pytest.raises(ConfigurationError, match="histograms that must arrive as they were sent"):
        run(data, filters=[{"filter": "cast", "at": "leaving_site", "to": "float16"}])
    with pytest.raises(ConfigurationError, match="booster 'gblinear' is not possible"):
        run(data, xgboost={"booster": "gblinear"})
    with pytest.raises(ConfigurationError, match=r"east, north, west: .*no_such_metric"):
        run(data, eval_metric=["no_such_metric"])
