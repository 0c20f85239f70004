"""Cyclic boosting in the simulator: the model is what stock XGBoost makes site after site."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost

from prefect_federated import load_fitted, simulate
from prefect_federated.agents.simulator import load_flow
from prefect_federated.errors import ConfigurationError
from prefect_federated.flows.xgboost_cyclic import xgboost_cyclic
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.tabular import FittedRef
from tests.adapters.xgboost.grown import frame, label
from tests.flows.tables import read_all, write_sites

pytestmark = pytest.mark.usefixtures("prefect_api")

SITES = ("east", "north", "west")
COLOURS = ["blue", "green", "red", "white"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, sites = np.random.default_rng(2), {}
    for name, rows in zip(SITES, (300, 200, 120), strict=True):
        features = frame(rows, random)
        sites[name] = features.assign(out=label("binary", features, random))
    return write_sites(tmp_path_factory.mktemp("made") / "sites", sites)


def run(data: Path, **more: JsonValue) -> FittedRef:
    given: dict[str, JsonValue] = {
        "dataset": "made", "label": "out", "compare_alone": False, "explain": False, "max_depth": 3,
    }  # fmt: skip
    result = simulate(xgboost_cyclic, data=data, parameters={**given, **more})
    assert isinstance(result.returned, FittedRef)
    return result.returned


def matrix(rows: pd.DataFrame) -> xgboost.DMatrix:
    features = rows.drop(columns="out")
    features["colour"] = pd.Categorical(features["colour"], COLOURS)
    return xgboost.DMatrix(features, rows["out"], enable_categorical=True, nthread=1)


def test_the_model_is_what_stock_xgboost_trains_at_one_site_after_the_other(data: Path) -> None:
    reference = run(data, rounds=3, trees_per_round=2, compare_alone=True)
    model = load_fitted(reference.path)
    assert isinstance(model, xgboost.Booster)
    mean = float(read_all(data, "train")["out"].mean())
    given = {
        "objective": "binary:logistic", "eta": 0.3, "max_depth": 3, "tree_method": "hist",
        "base_score": mean, "nthread": 1,
    }  # fmt: skip
    expected = None
    for _ in range(3):
        for site in SITES:
            rows = matrix(pd.read_csv(data / site / "train.csv"))
            expected = xgboost.train(given, rows, 2, xgb_model=expected)
    assert expected is not None
    assert model.num_boosted_rounds() == expected.num_boosted_rounds() == 18
    assert model.get_dump(with_stats=True) == expected.get_dump(with_stats=True)
    test = matrix(read_all(data, "test"))
    np.testing.assert_array_equal(model.predict(test), expected.predict(test))
    assert reference.metrics["auc"] > np.mean([site.alone["auc"] for site in reference.sites])


def test_a_site_that_is_away_is_skipped_and_the_best_cycle_is_kept(data: Path) -> None:
    reference = run(data, rounds=40, early_stopping_rounds=2, sites=["east", "west"], eta=0.8)
    model = load_fitted(reference.path)
    assert isinstance(model, xgboost.Booster)
    values = [
        float(str(row["val_log_loss"])) for row in reference.history if row["kind"] == "validate"
    ]
    assert len(values) < 40
    assert model.num_boosted_rounds() == 2 * (int(np.argmin(values)) + 1)  # two sites a cycle
    assert {site.name for site in reference.sites} == {"east", "west"}


def test_the_simulator_finds_the_flow_by_the_name_of_its_deployment() -> None:
    assert load_flow("xgboost-cyclic") is load_flow("xgboost_cyclic") is xgboost_cyclic


def test_a_booster_that_the_mode_cannot_do_is_refused_before_any_site_is_asked(data: Path) -> None:
    with pytest.raises(ConfigurationError, match="drops and rescales trees"):
        run(data, xgboost={"booster": "dart"})
