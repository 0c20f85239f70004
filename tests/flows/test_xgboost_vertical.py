"""Vertical XGBoost in the simulator, against XGBoost on the columns put together."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer

from prefect_federated import simulate
from prefect_federated.adapters.xgboost.parameters import resolve
from prefect_federated.errors import ConfigurationError, SitesDisagree
from prefect_federated.flows.xgboost_vertical import xgboost_vertical
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.tabular import FittedRef
from tests.flows import losing_columns_executor

pytestmark = pytest.mark.usefixtures("prefect_api")

SITES = ["bank", "clinic", "insurer"]  # the clinic has the label
QUICK: dict[str, JsonValue] = {
    "dataset": "people", "label": "target", "key": "person", "rounds": 5, "max_depth": 3,
}  # fmt: skip
DATASETS = "privacy: {training: true}\ndatasets: {people: {csv: people.csv}}\n"


def people() -> pd.DataFrame:
    loaded = load_breast_cancer(as_frame=True)
    frame: pd.DataFrame = loaded.frame.rename(columns=lambda name: name.replace(" ", "_"))
    frame.insert(0, "person", [f"p-{number:04d}" for number in range(len(frame))])
    return frame


def columns_of(frame: pd.DataFrame) -> dict[str, list[str]]:
    names = [name for name in frame.columns if name not in ("person", "target")]
    return {site: names[place::3] for place, site in enumerate(SITES)}


def write(folder: Path, frame: pd.DataFrame, **changed: pd.DataFrame) -> Path:
    """Gives each site its columns of most of the rows, in an order of its own."""
    random = np.random.default_rng(1)
    for place, (site, names) in enumerate(columns_of(frame).items()):
        label = ["target"] if site == "clinic" else []
        own = frame.iloc[random.permutation(len(frame))[place * 20 :]]
        rows = changed.get(site, own[["person", *names, *label]])
        (folder / site).mkdir(parents=True)
        rows.to_csv(folder / site / "people.csv", index=False)
        (folder / site / "datasets.yaml").write_text(DATASETS)
    return folder


def run(data: Path, **parameters: Any) -> FittedRef:
    result = simulate(xgboost_vertical, data=data, parameters={**QUICK, **parameters})
    assert isinstance(result.returned, FittedRef)
    return result.returned


def is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(f"0/{key}".encode()).digest()[:4]) < int(0.2 * 2**32)


def test_the_model_predicts_as_one_of_all_columns_together(tmp_path: Path) -> None:
    frame = people()
    data = write(tmp_path, frame)
    reference = run(data)
    booster = xgboost.Booster(model_file=Path(reference.path) / "model.ubj")
    by_site = columns_of(frame)
    names = [*by_site["clinic"], *by_site["bank"], *by_site["insurer"]]
    assert booster.feature_names == names
    keys = [set(pd.read_csv(data / site / "people.csv")["person"]) for site in SITES]
    common = frame[frame["person"].isin(set.intersection(*keys))]
    held_out = common["person"].map(is_held_out)
    train, test = common[~held_out], common[held_out]
    assert len(train) > 300
    pooled = xgboost.train(
        {**resolve("vertical", "binary", {}, max_depth=3), "nthread": 1},
        xgboost.DMatrix(train[names], train["target"]),
        5,
    )
    matrix = xgboost.DMatrix(test[names])
    predicted = booster.predict(matrix)
    np.testing.assert_allclose(predicted, pooled.predict(matrix), rtol=0, atol=1e-5)

    accuracy = float(((predicted > 0.5) == test["target"]).mean())
    assert reference.metrics["accuracy"] == pytest.approx(accuracy)
    card = {site.name: site for site in reference.sites}
    assert card["clinic"].alone["auc"] < card["clinic"].metrics["auc"] + 0.05
    assert card["bank"].alone_failed == "the label is not there"
    assert {site.train_rows for site in card.values()} == {len(train)}
    assert {site.test_rows for site in card.values()} == {len(test)}
    page = (Path(reference.path) / "card.md").read_text()
    assert "gradient" in page
    assert f"matched by 'person': {len(train)} to train on and {len(test)} to measure" in page
    asked = [row for row in reference.history if row["kind"] == "alone"]
    assert [row["sites"] for row in asked] == ["1/1"]  # the others have no label to train on


def test_no_common_key_a_key_twice_and_categories_are_refused_by_name(tmp_path: Path) -> None:
    frame = people()
    names = columns_of(frame)["bank"]
    others = frame[["person", *names]].assign(person=lambda f: "x" + f["person"])
    with pytest.raises(SitesDisagree, match=r"no key is at all sites \(.*bank has \d+ keys"):
        run(write(tmp_path / "no match", frame, bank=others))
    twice = pd.concat([frame, frame.head(7)])[["person", *names]]
    with pytest.raises(ConfigurationError, match=r"site 'bank' has \d keys that stand in"):
        run(write(tmp_path / "twice", frame, bank=twice))
    texts = frame[["person", *names]].assign(town=["Bern", "Chur"] * (len(frame) // 2) + ["Bern"])
    with pytest.raises(SitesDisagree, match="columns with categories: town at bank"):
        run(write(tmp_path / "categories", frame, bank=texts))


def test_what_column_splits_cannot_do_is_said_before_anybody_is_asked(tmp_path: Path) -> None:
    data = write(tmp_path, people())
    with pytest.raises(ConfigurationError, match="tree_method 'exact' is not possible"):
        run(data, xgboost={"tree_method": "exact"})
    with pytest.raises(ConfigurationError, match="Simulate with threads"):
        simulate(
            xgboost_vertical, data=data, processes=1,
            parameters={"dataset": "people", "label": "target", "key": "person"},
        )  # fmt: skip


def test_a_lost_site_is_waited_for_and_all_go_on_from_the_snapshot(tmp_path: Path) -> None:
    reference = run(
        write(tmp_path, people()), executor="tests.flows.losing_columns_executor",
        config={"lost": {"site": "insurer", "round": 4}}, snapshot_every=2, compare_alone=False,
    )  # fmt: skip
    rows = [row for row in reference.history if row["kind"] == "boost"]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert reference.metrics["auc"] > 0.9


def test_a_job_that_begins_anew_goes_on_with_the_rows_that_it_has_matched(tmp_path: Path) -> None:
    """Another order of the rows would hold out others, and draw others in each round."""
    data = write(tmp_path / "sites", people())
    losing_columns_executor.matchings.clear()
    retried = xgboost_vertical.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(tuple(SITES), 3, data, tmp_path)):
        reference = retried(
            **QUICK, snapshot_every=2, compare_alone=False, early_stopping_rounds=9,
            executor="tests.flows.losing_columns_executor", xgboost={"subsample": 0.7},
            config={"lost": {"site": "insurer", "round": 4, "fails": True}},
        )  # fmt: skip
    assert sorted(losing_columns_executor.matchings) == SITES
    rows = [row for row in reference.history if row["kind"] == "boost"]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert {site.train_rows for site in reference.sites} != {0}
