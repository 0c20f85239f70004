"""scikit-learn estimators over three sites in the simulator, against the pooled rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from prefect_federated import simulate
from prefect_federated.adapters.sklearn.learning import Learning
from prefect_federated.adapters.sklearn.saved import load
from prefect_federated.errors import ConfigurationError, QuorumNotReached, SnapshotCorrupt
from prefect_federated.flows.sklearn import sklearn
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.saved import load_fitted
from prefect_federated.tasks import sklearn_steps, snapshots
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.tabular import FittedRef
from tests.flows import cancer

pytestmark = pytest.mark.usefixtures("prefect_api")

COLUMNS = [name for name in cancer.frames()[0].columns if name != "benign"]
BAYES = "sklearn.naive_bayes."
OWN = "tests.adapters.sklearn.own.Mean"

own = Learning(allow=[OWN])
"""The executor by which a site allows an estimator that is not scikit-learn's."""


def run(data: Path, **parameters: JsonValue) -> FittedRef:
    given: dict[str, JsonValue] = {
        "dataset": "cancer", "label": "benign", "compare_alone": False, **parameters
    }  # fmt: skip
    result = simulate(sklearn, data=data, parameters=given)
    assert isinstance(result.returned, FittedRef)
    return result.returned


def loaded(reference: FittedRef) -> Pipeline:
    model = load_fitted(reference.path)
    assert isinstance(model, Pipeline)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, test = cancer.frames()
    return cancer.write(tmp_path_factory.mktemp("data"), cancer.divided(train), test)


@pytest.fixture(scope="module")
def open_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, test = cancer.frames()
    return cancer.write(
        tmp_path_factory.mktemp("open"), cancer.divided(train), test, raw_rows=cancer.SITES
    )


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return cancer.frames()[0]


@pytest.mark.parametrize(
    ("name", "parameters", "pooled"),
    [
        ("GaussianNB", {}, GaussianNB()),
        ("GaussianNB", {"var_smoothing": 0.01}, GaussianNB(var_smoothing=0.01)),
        ("MultinomialNB", {"alpha": 0.1}, MultinomialNB(alpha=0.1)),
        ("BernoulliNB", {"binarize": 10.0}, BernoulliNB(binarize=10.0)),
    ],
)
def test_naive_bayes_in_one_round_is_that_of_the_pooled_rows(
    data: Path, rows: pd.DataFrame, name: str, parameters: dict[str, JsonValue], pooled: Any
) -> None:
    reference = run(data, estimator=BAYES + name, parameters=parameters, scale=False)
    model = loaded(reference)
    pooled.fit(rows[COLUMNS].to_numpy(), rows["benign"])
    fitted = [each for each in vars(pooled) if each.endswith("_") and each != "n_features_in_"]
    for each in fitted:
        np.testing.assert_allclose(getattr(model[1], each), getattr(pooled, each), rtol=1e-10)
    np.testing.assert_array_equal(
        model.predict(rows[COLUMNS]), pooled.predict(rows[COLUMNS].to_numpy())
    )
    assert [row["kind"] for row in reference.history if row["round"] == 1] == ["sums"]


def test_averaged_rounds_of_one_site_are_partial_fit_on_its_rows(
    data: Path, rows: pd.DataFrame
) -> None:
    reference = run(
        data, sites=["c"], parameters={"random_state": 0}, rounds=3, batch_size=1000,
        local_epochs=2,
    )  # fmt: skip
    here = cancer.divided(rows)["c"]
    x = StandardScaler().fit_transform(here[COLUMNS])
    assert loaded(reference)[1].coef_.shape == (1, 30)
    assert loaded(reference)[1].t_ == 1 + 3 * 2 * len(x)
    accuracy = (loaded(reference).predict(here[COLUMNS]) == here["benign"]).mean()
    assert accuracy == pytest.approx(
        SGDClassifier(random_state=0).fit(x, here["benign"]).score(x, here["benign"]), abs=0.05
    )


def test_an_average_comes_near_the_pooled_estimator_and_says_what_it_is(
    data: Path, rows: pd.DataFrame
) -> None:
    test = cancer.frames()[1]
    reference = run(
        data, parameters={"loss": "log_loss", "random_state": 0}, rounds=5, compare_alone=True
    )
    model = loaded(reference)
    accuracy = float((model.predict(test[COLUMNS]) == test["benign"]).mean())
    assert reference.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert accuracy > 0.94
    trained = [row for row in reference.history if row["kind"] == "train"]
    assert [row["round"] for row in trained] == [1, 2, 3, 4, 5]
    assert all(float(str(row["accuracy"])) > 0.9 for row in trained)
    told = json.loads((Path(reference.path) / "card.json").read_text())
    assert told["parameters"]["combine"] == "average"
    assert all(each["alone"]["accuracy"] > 0.8 for each in told["sites"])
    assert any("its coefficients" in line for line in told["leaves"])


def test_an_estimator_that_is_no_average_goes_from_site_to_site(
    data: Path, rows: pd.DataFrame
) -> None:
    test = cancer.frames()[1]
    parameters: dict[str, JsonValue] = {
        "hidden_layer_sizes": [8], "random_state": 0, "learning_rate_init": 0.01
    }  # fmt: skip
    reference = run(
        data, estimator="sklearn.neural_network.MLPClassifier", parameters=parameters, rounds=8
    )
    model = loaded(reference)
    assert isinstance(model[1], MLPClassifier)
    assert model[1].t_ == 8 * len(rows)  # each row once a round
    assert model.score(test[COLUMNS], test["benign"]) > 0.93


def test_a_job_that_is_killed_goes_on_after_its_last_round(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded(run(data, rounds=4, parameters={"random_state": 0}))
    written, original = [], snapshots.snapshot

    def dies_once(state: Any) -> None:
        original(state)
        written.append(state.round)
        if written == [1, 2]:
            raise OSError("the controller dies")

    monkeypatch.setattr(sklearn_steps, "snapshot", dies_once)
    retried = sklearn.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(cancer.SITES, 2, data, tmp_path)):
        model = loaded(
            retried(
                dataset="cancer", label="benign", rounds=4, parameters={"random_state": 0},
                compare_alone=False,
            )
        )  # fmt: skip
    assert written in ([1, 2, 3, 4], [1, 2, 2, 3, 4])
    np.testing.assert_array_equal(model[1].coef_, expected[1].coef_)


def test_a_regressor_of_values_and_clusters_without_a_label(data: Path, open_data: Path) -> None:
    test = cancer.frames()[1]
    reference = run(
        data, estimator="sklearn.linear_model.SGDRegressor", objective="regression",
        label="mean_area", features=["mean_radius", "mean_texture", "mean_perimeter"], rounds=20,
        parameters={"random_state": 0, "eta0": 0.01},
    )  # fmt: skip
    assert reference.metrics["r2"] > 0.9
    clusters: dict[str, JsonValue] = {
        "estimator": "sklearn.cluster.MiniBatchKMeans", "objective": "none", "label": None,
        "features": [*COLUMNS], "rounds": 2, "batch_size": 60,
        "parameters": {"n_clusters": 2, "random_state": 0, "n_init": 1},
    }  # fmt: skip
    with pytest.raises(QuorumNotReached, match=r"may be rows of the data.*Take the flow 'kmeans'"):
        run(data, **clusters)
    reference = run(open_data, **clusters)
    assert set(loaded(reference).predict(test[COLUMNS])) == {0, 1}
    assert "score" in reference.metrics
    told = json.loads((Path(reference.path) / "card.json").read_text())
    assert any("ROWS OF THE DATA" in line for line in told["leaves"])


def test_a_class_of_few_rows_is_left_out_of_the_sums_and_the_card_says_so(tmp_path: Path) -> None:
    train, test = cancer.frames()
    parts = cancer.divided(train)
    sick = parts["b"][parts["b"]["benign"] == 0]
    parts["b"] = pd.concat([parts["b"][parts["b"]["benign"] == 1], sick.iloc[:1]])
    data = cancer.write(tmp_path, parts, test)
    reference = run(data, estimator=BAYES + "GaussianNB", scale=False)
    used = pd.concat([parts["a"], parts["b"].iloc[:-1], parts["c"]])
    expected = GaussianNB().fit(used[COLUMNS].to_numpy(), used["benign"])
    np.testing.assert_allclose(loaded(reference)[1].theta_, expected.theta_, rtol=1e-10)
    notes = json.loads((Path(reference.path) / "card.json").read_text())["notes"]
    assert any(note.startswith("b has left out rows of classes") for note in notes)


def test_a_site_with_one_class_takes_part(tmp_path: Path) -> None:
    train, test = cancer.frames()
    parts = cancer.divided(train)
    parts["b"] = parts["b"][parts["b"]["benign"] == 1]
    data = cancer.write(tmp_path, parts, test)
    reference = run(data, rounds=3, parameters={"random_state": 0}, compare_alone=True)
    assert reference.metrics["accuracy"] > 0.85
    pooled = pd.concat(parts.values())
    bayes = loaded(run(data, estimator=BAYES + "GaussianNB", scale=False))
    expected = GaussianNB().fit(pooled[COLUMNS].to_numpy(), pooled["benign"])
    np.testing.assert_allclose(bayes[1].var_, expected.var_, rtol=1e-10)


def test_an_estimator_of_the_jobs_own_runs_where_the_sites_executor_allows_it(
    data: Path, rows: pd.DataFrame
) -> None:
    parameters: dict[str, JsonValue] = {
        "estimator": OWN, "parameters": {"shift": 1.0}, "label": "mean_area",
        "objective": "regression", "rounds": 1, "features": ["mean_radius"],
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"own\.Mean' is not one that"):
        run(data, **parameters)
    reference = run(data, executor="tests.flows.test_sklearn:own", **parameters)
    with pytest.raises(SnapshotCorrupt, match="not one that a saved model may name"):
        load_fitted(reference.path)
    model = load(reference.path, allow=[OWN])
    assert model.predict(rows[["mean_radius"]])[0] == pytest.approx(rows["mean_area"].mean() + 1)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"estimator": "sklearn.linear_model.SGDClasifier"}, "Did you mean .*SGDClassifier"),
        ({"estimator": "sklearn.svm.SVC"}, "has no partial_fit.* Take the flow 'svm'"),
        ({"parameters": {"alhpa": 1}}, "no parameter 'alhpa'. Did you mean 'alpha'"),
        ({"combine": "exact"}, "cannot be combined by 'exact'"),
        ({"objective": "regression"}, "it is 'binary' or 'multiclass'"),
        ({"estimator": "a.B", "combine": "average"}, "goes from site to site"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_any_site_is_asked(
    tmp_path: Path, parameters: dict[str, JsonValue], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path / "nowhere", **parameters)


def test_numbers_below_0_are_refused_by_counts_and_say_the_site(data: Path) -> None:
    with pytest.raises(Exception, match=r"a: ConfigurationError: MultinomialNB counts"):
        run(data, estimator=BAYES + "MultinomialNB")


def test_sites_that_disagree_on_classes_stop_the_job(tmp_path: Path) -> None:
    train, test = cancer.frames()
    parts = cancer.divided(train)
    parts["b"] = parts["b"].assign(benign=parts["b"]["benign"] + 1)
    data = cancer.write(tmp_path, parts, test)
    with pytest.raises(ConfigurationError, match=r"has 3 values where .*b has"):
        run(data)
