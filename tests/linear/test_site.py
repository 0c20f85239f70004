"""What a site answers, without a job."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import Site
from prefect_federated.linear.design import Design
from prefect_federated.linear.fitting import Model
from prefect_federated.linear.site import (
    alone,
    evaluate,
    few_in,
    gram,
    moments,
    newton,
    predicted,
)
from prefect_federated.messages import JsonValue, Update
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import Part, config_of
from prefect_federated.tabular.schema import Feature, Schema
from tests.flows.tables import write_sites

NAMES = ("x", "flat", "twice")


def site_of(folder: Path, label: str, model: Model, rows: int = 100) -> Site:
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    frame = pd.DataFrame({"x": x, "flat": 2.5, "twice": 2 * x})
    frame["y"] = 1 + 3 * x + random.normal(size=rows)
    frame["sick"] = (x > 0).astype(int)  # x tells the classes apart
    write_sites(folder, {"here": frame})
    objective = "regression" if label == "y" else "binary"
    question = TabularQuestion(
        dataset="made", label=label, features=NAMES, objective=objective
    )  # fmt: skip
    schema = Schema(
        features=tuple(Feature(name=name, kind="numeric") for name in NAMES),
        label=label,
        classes=() if label == "y" else (0.0, 1.0),
    )
    numbers = dict.fromkeys(NAMES, 0.0)
    encoding = Encoding(schema.features, numbers, numbers, dict.fromkeys(NAMES, 1.0))
    config: dict[str, JsonValue] = {
        **config_of(question, schema), "encoding": encoding.to_json(), "linear": model.to_json()
    }  # fmt: skip
    return Site("here", folder / "here", folder, config)


def test_alone_leaves_out_columns_that_its_rows_do_not_determine(tmp_path: Path) -> None:
    site = site_of(tmp_path, "y", Model("least_squares"))
    metrics = alone({}, site).metrics
    train, test = (pd.read_csv(site.data / f"{part}.csv") for part in ("train", "test"))
    known = LinearRegression().fit(train[["x"]], train["y"])
    error = known.predict(test[["x"]]) - test["y"]
    assert metrics["rmse"] == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-9)


def test_alone_with_separated_classes_stops_there(tmp_path: Path) -> None:
    site = site_of(tmp_path, "sick", Model("logistic", classes=("0", "1")))
    assert alone({}, site).metrics["auc"] == 1


def test_too_few_rows_for_their_columns_send_no_sums(tmp_path: Path) -> None:
    model = Model("logistic", classes=("0", "1"))
    site = site_of(tmp_path, "sick", model, rows=26)
    needed = {**site.config, "tabular": {**site.config["tabular"], "test_share": 0.0}}  # type: ignore[dict-item]
    assert gram({}, Site("here", site.data, tmp_path, needed)).weight == 21
    numbers = dict.fromkeys(NAMES, 0.0)
    wards = [
        Feature(name=f"c{number}", kind="categorical", categories=("a", "b")) for number in range(8)
    ]
    features = (*(Feature(name=name, kind="numeric") for name in NAMES), *wards)
    encoding = Encoding(features, numbers, numbers, dict.fromkeys(numbers, 1.0))
    narrow = Site("here", site.data, tmp_path, {**needed, "encoding": encoding.to_json()})
    for task in (gram, newton):
        with pytest.raises(ConfigurationError, match="sums of fewer than 24 rows could give them"):
            task({"coefficients": np.zeros((1, 12))}, narrow)


def test_evaluate_weighs_its_metrics_by_test_rows(tmp_path: Path) -> None:
    site = site_of(tmp_path, "y", Model("least_squares"))
    update = evaluate({"coefficients": np.array([[1.0, 3.0, 0, 0]])}, site)
    assert update.metrics_weight == 20
    assert 0.5 < update.metrics["rmse"] < 1.5


def test_predictions_of_each_loss() -> None:
    rows = np.array([[0.0], [1.0]])
    one = np.array([[0.0, 1.0]])
    sigmoid = 1 / (1 + np.exp(-1))
    assert predicted(Model("ridge"), rows, one).tolist() == [0, 1]
    np.testing.assert_allclose(predicted(Model("poisson"), rows, one), [1, float(np.exp(1))])
    np.testing.assert_allclose(predicted(Model("logistic"), rows, one), [0.5, sigmoid])
    many = predicted(Model("multinomial"), rows, np.array([[0.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(many.sum(axis=1), 1)
    assert many.shape == (2, 3)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="config 'linear' is no model"):
        Model.from_json({"family": "tree"})


def test_what_few_rows_have_is_told_and_withheld_where_the_policy_says_so(tmp_path: Path) -> None:
    site = site_of(tmp_path, "y", Model("least_squares"))
    file = site.data / "train.csv"
    rows = pd.read_csv(file)
    rows.loc[3:, "flat"] = np.nan  # three values are left
    rows.to_csv(file, index=False)
    with pytest.raises(ConfigurationError, match="fewer than 5 training rows have flat, and the"):
        gram({}, site)
    assert moments({}, site).tensors["count"].tolist() == [80, 0, 80]
    assert moments({}, site).tensors["mean"][1] == 0
    own = site.data / "datasets.yaml"
    own.write_text(own.read_text().replace("  small_cell: 5\n", ""))
    assert few_in(gram({}, site)) == ["flat"]
    assert moments({}, site).tensors["count"].tolist() == [80, 3, 80]
    with pytest.raises(UpdateRejected, match="its 'few' is no list of names"):
        few_in(Update(blobs={"few": b"{}"}, site="x"))


def test_few_rows_of_a_category_and_of_a_truth_are_found() -> None:
    features = (
        Feature(name="ward", kind="categorical", categories=("a", "b", "c")),
        Feature(name="smokes", kind="boolean"),
    )
    encoding = Encoding(features, {"smokes": 0.5}, {"smokes": 0.0}, {"smokes": 1.0})
    frame = pd.DataFrame({"ward": pd.Categorical(["a"] * 9 + ["b"], ["a", "b", "c"])})
    frame["smokes"] = [1.0] * 8 + [0.0, np.nan]
    part = Part(frame, np.zeros(10))
    assert Design(encoding).few(part, 5) == ["ward=b", "smokes=0"]
    assert Design(encoding).few(part, 0) == []
