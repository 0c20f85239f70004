"""What a site answers, without a job."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from prefect_federated.executors import Site
from prefect_federated.kmeans.site import alone, cells, evaluate, groups, measured, moments
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import config_of
from prefect_federated.tabular.schema import Feature, Schema
from tests.flows.tables import write_sites


@pytest.fixture
def site(tmp_path: Path) -> Site:
    rows = load_iris(as_frame=True).data.sample(frac=1, random_state=0)
    rows.columns = ["a", "b", "c", "d"]
    write_sites(tmp_path, {"here": rows}, small_cell=8)
    features = tuple(Feature(name=name, kind="numeric") for name in rows.columns)
    zeros, ones = (dict.fromkeys(rows.columns, each) for each in (0.0, 1.0))
    encoding = Encoding(features, zeros, zeros, ones)
    question = TabularQuestion(dataset="made")
    config: dict[str, JsonValue] = {
        **config_of(question, Schema(features=features)),
        "encoding": encoding.to_json(), "clusters": 3, "restarts": 4,
    }  # fmt: skip
    return Site("here", tmp_path / "here", tmp_path, config, seed=1)


def test_sums_are_of_no_fewer_rows_than_the_policy_says(site: Site) -> None:
    rows = pd.read_csv(site.data / "train.csv").to_numpy()
    means = groups({}, site).tensors
    assert means["weights"].min() >= 8
    assert means["weights"].sum() == len(rows) == 120
    overall = np.average(means["points"], axis=0, weights=means["weights"])
    np.testing.assert_allclose(overall, rows.mean(axis=0), rtol=1e-12)

    centers = np.stack([rows[:12], rows[12:24]])
    found = cells({"centers": centers}, site).tensors
    assert found["counts"].sum(axis=1).tolist() == [120, 120]
    assert ((found["counts"] == 0) | (found["counts"] >= 8)).all()
    np.testing.assert_allclose(found["sums"].sum(axis=1), np.stack([rows.sum(axis=0)] * 2))
    nearest = ((rows[:, None] - centers[0]) ** 2).sum(axis=2).min(axis=1)
    assert found["inertia"][0] == pytest.approx(nearest.sum(), rel=1e-12)


def test_metrics_are_of_the_test_rows(site: Site) -> None:
    rows = pd.read_csv(site.data / "test.csv").to_numpy()
    update = evaluate({"centers": rows[:3]}, site)
    apart = np.sqrt(((rows[:, None] - rows[:3]) ** 2).sum(axis=2))
    assert update.metrics_weight == len(rows)
    assert update.metrics["inertia_per_row"] == pytest.approx((apart.min(axis=1) ** 2).mean())
    own, other = np.sort(apart, axis=1)[:, :2].T
    assert update.metrics["silhouette"] == pytest.approx((1 - own / other).mean(), rel=1e-6)
    assert alone({}, site).metrics["inertia_per_row"] < 2 * 78.9 / 150
    assert measured(rows[:0], rows[:3]) == {}
    assert "silhouette" not in measured(rows, rows[:1])
    assert moments({}, site).tensors["count"].tolist() == [120] * 4
