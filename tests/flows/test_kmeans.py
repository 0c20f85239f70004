"""k-means in the simulator, against scikit-learn on the pooled rows."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import homogeneity_score

from prefect_federated import load_fitted, simulate
from prefect_federated.errors import ModelUndetermined
from prefect_federated.flows.kmeans import kmeans
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.kmeans import KMeansJob, KMeansRef
from prefect_federated.tasks.simulated import Simulation, simulating
from tests.flows.tables import documented, read_all, write_sites

pytestmark = pytest.mark.usefixtures("prefect_api")

SITES = ["east", "north", "west"]
NEAR = 1.02  # inertia over pooled scikit-learn's with as many restarts


def split(rows: pd.DataFrame, folder: Path, shuffled: bool = True) -> Path:
    order = np.random.default_rng(1).permutation(len(rows)) if shuffled else np.arange(len(rows))
    parts = np.array_split(order, 3)
    sites = {name: rows.iloc[part] for name, part in zip(SITES, parts, strict=True)}
    return write_sites(folder / "sites", sites)


def run(data: Path, **more: JsonValue) -> KMeansRef:
    result = simulate(kmeans, data=data, parameters={"dataset": "made", **more})
    assert isinstance(result.returned, KMeansRef)
    return result.returned


def loaded(reference: KMeansRef) -> Any:
    return load_fitted(reference.path)


@pytest.mark.parametrize("shuffled", [True, False])
def test_iris_has_pooled_inertia_and_homogeneity(tmp_path: Path, shuffled: bool) -> None:
    """With one kind of iris at each site, too."""
    iris = load_iris(as_frame=True)
    data = split(iris.data, tmp_path, shuffled)
    reference = run(data, clusters=3, scale=False)
    train = read_all(data, "train")
    pooled = KMeans(3, n_init=10, random_state=0).fit(train)
    assert reference.inertia[-1] <= NEAR * pooled.inertia_
    assert (np.diff(reference.inertia) <= 0).all()

    model = loaded(reference)
    found = model.predict(iris.data)
    whole = KMeans(3, n_init=10, random_state=0).fit(iris.data).labels_
    homogeneity = homogeneity_score(iris.target, found)
    assert homogeneity >= homogeneity_score(iris.target, whole) - 0.02
    assert homogeneity > 0.72  # the defect to avoid: 0.61
    centers = pd.DataFrame(reference.centers)[list(train.columns)].to_numpy()
    np.testing.assert_allclose(centers, model[-1].cluster_centers_, rtol=0.5)
    nearest = ((train.to_numpy()[:, None] - centers) ** 2).sum(axis=2).min(axis=1)
    assert nearest.sum() == pytest.approx(reference.inertia[-1], rel=1e-9)
    for counts in reference.cluster_rows.values():
        assert sum(counts) == 40
        assert all(count == 0 or count >= 5 for count in counts)
    card = (Path(reference.path) / "card.md").read_text()
    assert "| petal length (cm) | " in card
    assert (Path(reference.path) / "inertia.png").exists()
    assert "inertia_per_row" in reference.metrics
    assert -1 <= reference.metrics["silhouette"] <= 1


def test_breast_cancer_scaled_has_pooled_inertia(tmp_path: Path) -> None:
    data = split(load_breast_cancer(as_frame=True).data, tmp_path)
    reference = run(data, clusters=4, compare_alone=False)
    train = read_all(data, "train")
    scaled = (train - train.mean()) / train.std(ddof=0)
    pooled = KMeans(4, n_init=10, random_state=0).fit(scaled)
    assert reference.inertia[-1] <= NEAR * pooled.inertia_


def test_heart_at_its_four_hospitals_has_pooled_inertia(tmp_path: Path) -> None:
    prepare = Path(__file__).parents[2] / "examples" / "heart" / "prepare.py"
    runpy.run_path(str(prepare))["split_by_hospital"](tmp_path / "raw")
    features = ["age", "trestbps", "chol", "thalch", "oldpeak"]
    sites = {
        each.name: pd.read_csv(each / "heart.csv")[features]
        for each in sorted((tmp_path / "raw").iterdir())
    }
    data = write_sites(tmp_path / "sites", sites)
    reference = run(data, clusters=3)
    train = read_all(data, "train")
    filled = train.fillna(train.mean())
    scaled = (filled - train.mean()) / train.std(ddof=0)
    pooled = KMeans(3, n_init=10, random_state=0).fit(scaled)
    assert reference.inertia[-1] <= NEAR * pooled.inertia_
    assert set(reference.centers[0]) == set(features)
    assert 40 < reference.centers[0]["age"] < 70


def test_a_job_resumes_in_the_middle_of_lloyds_rounds(tmp_path: Path) -> None:
    data = split(load_iris(as_frame=True).data, tmp_path)
    whole = run(data, clusters=3, compare_alone=False)
    retried = kmeans.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(tuple(SITES), 2, data, tmp_path)):
        reference = retried(
            dataset="made", clusters=3, executor="tests.flows.kmeans_executors", quorum=1.0,
            config={"fails_once_in": 3}, compare_alone=False,
        )  # fmt: skip
    assert all((data / site / "has-failed").exists() for site in SITES)
    assert reference.inertia == whole.inertia
    assert reference.centers == whole.centers


def test_a_site_that_is_away_is_left_out(tmp_path: Path) -> None:
    data = split(load_iris(as_frame=True).data, tmp_path)
    reference = run(data, clusters=3, sites=["east", "west"], scale=False, compare_alone=False)
    pooled = KMeans(3, n_init=10, random_state=0).fit(read_all(data, "train", ["east", "west"]))
    assert set(reference.cluster_rows) == {"east", "west"}
    assert reference.inertia[-1] <= NEAR * pooled.inertia_


def test_more_clusters_than_groups_of_rows_are_refused(tmp_path: Path) -> None:
    data = split(load_iris(as_frame=True).data, tmp_path)
    with pytest.raises(
        ModelUndetermined, match="different groups of at least 5 rows, and 40 clusters"
    ):
        run(data, clusters=40)


def test_the_page_lists_each_parameter_of_the_job_with_its_default() -> None:
    shown = documented("k-means.md")
    own = {
        name: field.default
        for name, field in KMeansJob.model_fields.items()
        if name in KMeansJob.__annotations__
    }
    assert (shown.pop("clusters"), shown.pop("scale")) == ("needed", "true")
    assert {name: float(each) for name, each in shown.items()} == {
        name: each for name, each in own.items() if name not in ("clusters", "scale", "executor")
    }
