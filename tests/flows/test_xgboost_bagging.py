"""Tree bagging in the simulator, against stock XGBoost on the pooled rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from prefect_federated import load_fitted, simulate
from prefect_federated.adapters.xgboost.parameters import Objective, resolve
from prefect_federated.errors import ConfigurationError, SitesDisagree
from prefect_federated.flows.xgboost_bagging import xgboost_bagging
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.scores import is_better, scores
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.tabular import FittedRef
from tests.adapters.xgboost.grown import frame, label
from tests.flows.tables import read_all, write_sites

pytestmark = pytest.mark.usefixtures("prefect_api")

SITES = ("east", "north", "west")
QUICK: dict[str, JsonValue] = {"compare_alone": False, "explain": False, "rounds": 3}
FAILING = "tests.flows.tree_executors"


def breast_cancer(folder: Path) -> Path:
    table = load_breast_cancer(as_frame=True).frame
    table.columns = [str(name).replace(" ", "_") for name in table]
    order = np.random.default_rng(0).permutation(len(table))
    parts = np.split(order, [300, 450])  # sites of unequal size
    sites = {name: table.iloc[part] for name, part in zip(SITES, parts, strict=True)}
    return write_sites(folder / "sites", sites)


def made(folder: Path, objective: str) -> Path:
    """Writes sites with categories and missing values, whose label depends on both."""
    random, sites = np.random.default_rng(1), {}
    for place, (name, rows) in enumerate(zip(SITES, (300, 200, 120), strict=True)):
        features = frame(rows, random)
        query = {"query": 100 * place + np.arange(rows) // 10} if objective == "ranking" else {}
        sites[name] = features.assign(out=label(objective, features, random), **query)
    return write_sites(folder / "sites", sites)


def run(data: Path, **more: JsonValue) -> FittedRef:
    result = simulate(xgboost_bagging, data=data, parameters={"dataset": "made", **more})
    assert isinstance(result.returned, FittedRef)
    return result.returned


def loaded(reference: FittedRef) -> xgboost.Booster:
    model = load_fitted(reference.path)
    assert isinstance(model, xgboost.Booster)
    return model


def card(reference: FittedRef) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(reference.path) / "card.json").read_text())
    return found


def matrix(rows: pd.DataFrame) -> xgboost.DMatrix:
    features = rows.drop(columns=["out", *({"query"} & set(rows))])
    for name in features.select_dtypes(["object", "string"]):
        features[name] = features[name].astype("category")
    query = {"qid": rows["query"]} if "query" in rows else {}
    return xgboost.DMatrix(features, rows["out"], enable_categorical=True, nthread=1, **query)


def test_breast_cancer_comes_near_pooled_training_and_beats_each_site_alone(
    tmp_path: Path,
) -> None:
    data = breast_cancer(tmp_path)
    reference = run(data, label="target", rounds=20)
    test, train = read_all(data, "test"), read_all(data, "train")
    columns = [name for name in train if name != "target"]
    pooled = xgboost.train(
        {"objective": "binary:logistic", "eta": 0.3, "max_depth": 6, "nthread": 1},
        xgboost.DMatrix(train[columns], train["target"]), 20,
    )  # fmt: skip
    model = loaded(reference)
    auc = roc_auc_score(test["target"], model.predict(xgboost.DMatrix(test[columns])))
    assert auc > 0.985
    assert (
        auc > roc_auc_score(test["target"], pooled.predict(xgboost.DMatrix(test[columns]))) - 0.01
    )
    assert model.num_boosted_rounds() == 20
    for site in reference.sites:
        rows = pd.read_csv(data / site.name / "test.csv")
        own = model.predict(xgboost.DMatrix(rows[columns]))
        assert site.metrics["auc"] == pytest.approx(roc_auc_score(rows["target"], own))
        assert site.metrics["auc"] >= site.alone["auc"] - 0.01
    losses = [(s.metrics["log_loss"], s.alone["log_loss"]) for s in reference.sites]
    assert np.mean(losses, axis=0)[0] < np.mean(losses, axis=0)[1]

    folder = Path(reference.path)
    assert {"gain.png", "shap.png", "model.ubj", "card.md"} <= {p.name for p in folder.iterdir()}
    for picture in ("gain.png", "shap.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    score = float(str(card(reference)["parameters"]["base_score"]))
    assert score == pytest.approx(train["target"].mean(), rel=1e-6)
    assert any("second derivatives" in line for line in card(reference)["leaves"])

    # what travels down grows with the model; what travels up is a round's trees
    trained = [row for row in reference.history if row["kind"] == "train"]
    assert len(trained) == 20


@pytest.mark.parametrize(
    ("objective", "metric", "near"),
    [
        ("multiclass", "accuracy", 0.05),
        ("regression", "r2", 0.05),
        ("poisson", "deviance", 0.1),
        ("ranking", "ndcg", 0.05),
    ],
)
def test_objectives_with_categories_and_missing_values_come_near_pooled_training(
    tmp_path: Path, objective: Objective, metric: str, near: float
) -> None:
    data = made(tmp_path, objective)
    group: dict[str, JsonValue] = {"group": "query"} if objective == "ranking" else {}
    reference = run(
        data, label="out", objective=objective, rounds=8, max_depth=4, trees_per_round=2,
        compare_alone=False, explain=objective == "multiclass", **group,
    )  # fmt: skip
    model, classes = loaded(reference), 3 if objective == "multiclass" else 1
    assert len(model.get_dump()) == 8 * 3 * 2 * classes
    assert "colour" in model.get_score()

    given = resolve("bagging", objective, {}, classes=classes, max_depth=4)
    train, test = matrix(read_all(data, "train")), matrix(read_all(data, "test"))
    pooled = xgboost.train({**given, "nthread": 1}, train, 16)
    rows = read_all(data, "test")
    queries = rows["query"].to_numpy() if group else None
    found, best = (
        scores(objective, rows["out"].to_numpy(float), each.predict(test).astype(float), queries)
        for each in (model, pooled)
    )
    if is_better(metric, 0, 1):
        assert found[metric] < best[metric] + near
    else:
        assert found[metric] > best[metric] - near
    if metric == "accuracy":  # a mean over rows is the mean over sites by rows
        assert reference.metrics[metric] == pytest.approx(found[metric])


def test_early_stopping_keeps_the_best_round_by_rows_that_no_tree_was_grown_on(
    tmp_path: Path,
) -> None:
    """A label that nothing predicts: more rounds only learn the noise."""
    random, sites = np.random.default_rng(0), {}
    for name in SITES:
        features = frame(150, random)
        sites[name] = features.assign(out=random.integers(0, 2, 150))
    data = write_sites(tmp_path / "sites", sites)
    reference = run(
        data, label="out", rounds=60, early_stopping_rounds=3, compare_alone=False, explain=False
    )
    trained = [row for row in reference.history if row["kind"] == "train"]
    values = [float(str(row["val_log_loss"])) for row in trained if "val_log_loss" in row]
    assert len(trained) < 20
    kept = card(reference)["rounds"]
    assert loaded(reference).num_boosted_rounds() == kept == int(np.argmin(values)) + 1
    assert any("Early stopping by log_loss" in note for note in card(reference)["notes"])


def test_a_killed_round_resumes_from_the_snapshot_to_the_same_model(tmp_path: Path) -> None:
    data = made(tmp_path, "binary")
    quick: dict[str, JsonValue] = {
        **QUICK,
        "early_stopping_rounds": 9,
        "xgboost": {"subsample": 0.7},
    }
    whole = run(data, label="out", **quick)
    retried = xgboost_bagging.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(SITES, 2, data, tmp_path)):
        resumed = retried(
            dataset="made", label="out", executor=FAILING, config={"fails_once_in": 3}, **quick
        )
    assert all((data / site / "has-failed").exists() for site in SITES)
    first, second = ((Path(each.path) / "model.ubj").read_bytes() for each in (whole, resumed))
    assert first == second
    assert card(whole)["notes"] == card(resumed)["notes"]


def test_a_site_that_fails_is_skipped_and_the_others_weigh_as_if_it_were_not_there(
    tmp_path: Path,
) -> None:
    data = made(tmp_path, "binary")
    reference = run(
        data, label="out", executor=FAILING, config={"fails_at": "west"}, quorum=0.6,
        **QUICK,
    )  # fmt: skip
    model = loaded(reference)
    assert len(model.get_dump()) == 3 * 2
    assert "west has grown trees in 0 of 3 rounds." in card(reference)["notes"]


def test_sites_that_cannot_train_together_are_named(tmp_path: Path) -> None:
    data = made(tmp_path, "binary")
    with pytest.raises(ConfigurationError, match="Did you mean 'subsample'"):
        run(data, label="out", xgboost={"subsampl": 0.5}, **QUICK)
    with pytest.raises(SitesDisagree, match="'colour'"):
        run(data, label="colour", objective="regression", **QUICK)
    west = pd.read_csv(data / "west" / "train.csv")
    west.assign(out=west["out"].where(west.index != 3, 2).where(west.index > 9, 2)).to_csv(
        data / "west" / "train.csv", index=False
    )
    with pytest.raises(SitesDisagree, match="west has 0, 1, 2"):
        run(data, label="out", **QUICK)


def test_a_site_with_one_class_and_rows_without_a_label_take_part(tmp_path: Path) -> None:
    data = made(tmp_path, "binary")
    west = pd.read_csv(data / "west" / "train.csv")
    west["out"] = 1.0
    west.loc[:4, "out"] = np.nan
    west.to_csv(data / "west" / "train.csv", index=False)
    reference = run(data, label="out", **QUICK)
    notes = card(reference)["notes"]
    assert any("west: the label has one class only" in note for note in notes)
    assert any("west: rows without a label are left out" in note for note in notes)
    rows = {site.name: site.train_rows for site in reference.sites}
    assert rows["west"] == len(west) - 5
