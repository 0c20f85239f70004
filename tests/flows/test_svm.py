"""Support vector machines over three sites in the simulator, against scikit-learn on all rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from prefect_federated import Site, executor, simulate
from prefect_federated.adapters.sklearn import svm as site_tasks
from prefect_federated.adapters.sklearn.hinge import fit
from prefect_federated.errors import ConfigurationError, QuorumNotReached, SitesDisagree
from prefect_federated.flows.svm import svm
from prefect_federated.messages import JsonValue, Tensors, Update
from prefect_federated.tabular.saved import load_fitted
from prefect_federated.tasks import snapshots, svm_steps
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.tabular import FittedRef
from tests.flows import cancer

pytestmark = pytest.mark.usefixtures("prefect_api")

COLUMNS = [name for name in cancer.frames()[0].columns if name != "benign"]


def run(data: Path, **parameters: JsonValue) -> tuple[FittedRef, Pipeline]:
    given: dict[str, JsonValue] = {
        "dataset": "cancer", "label": "benign", "compare_alone": False, **parameters
    }  # fmt: skip
    result = simulate(svm, data=data, parameters=given)
    assert isinstance(result.returned, FittedRef)
    model = load_fitted(result.returned.path)
    assert isinstance(model, Pipeline)
    return result.returned, model


def written(folder: Path, **options: Any) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    train, test = cancer.frames()
    return cancer.write(folder, cancer.divided(train), test, **options), train, test


def pooled(train: pd.DataFrame) -> Pipeline:
    return Pipeline([("scale", StandardScaler()), ("svm", SVC())]).fit(
        train[COLUMNS], train["benign"]
    )


def card(reference: FittedRef) -> Mapping[str, Any]:
    return dict(json.loads((Path(reference.path) / "card.json").read_text()))


def test_fourier_features_reach_the_pooled_optimum_and_near_the_pooled_kernel_svm(
    tmp_path: Path,
) -> None:
    data, train, test = written(tmp_path)
    reference, model = run(data, compare_alone=True)
    encoded = StandardScaler().fit_transform(train[COLUMNS])
    np.testing.assert_allclose(model[0].transform(train[COLUMNS]), encoded, rtol=0, atol=1e-9)
    assert model[1].gamma == pytest.approx(1 / 30, rel=1e-9)
    features = model[1].transform(encoded)
    optimum = fit(features, train["benign"].to_numpy(dtype=np.float64), 2, 1.0)
    np.testing.assert_allclose(model[2].coef_, optimum[:, :-1], rtol=0, atol=1e-7)
    ours = (model.predict(test[COLUMNS]) == test["benign"]).mean()
    assert ours >= pooled(train).score(test[COLUMNS], test["benign"]) - 0.02  # of one seed
    assert reference.metrics["accuracy"] == pytest.approx(ours, abs=1e-9)
    assert "log_loss" not in reference.metrics
    told = card(reference)
    assert {each["name"] for each in told["sites"]} == set(cancer.SITES)
    assert all(0.8 < each["alone"]["accuracy"] <= 1 for each in told["sites"])
    assert any("gradient and the Hessian" in line for line in told["leaves"])
    assert not any("ROWS" in line for line in told["leaves"])
    rounds = [row for row in reference.history if row["kind"] == "sums"]
    assert 3 <= len(rounds) <= 10
    assert all(row["sites"] == "3/3" for row in rounds)


def test_a_job_that_is_killed_goes_on_after_its_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, _ = written(tmp_path)
    _, expected = run(data)
    written_before, original = [], snapshots.snapshot

    def dies_once(state: Any) -> None:
        original(state)
        written_before.append(state.round)
        if written_before == [1, 2, 3]:
            raise OSError("the controller dies")

    monkeypatch.setattr(svm_steps, "snapshot", dies_once)
    retried = svm.with_options(retries=1, retry_delay_seconds=0)
    with simulating(Simulation(cancer.SITES, 2, data, tmp_path / "state")):
        reference: Any = retried(dataset="cancer", label="benign", compare_alone=False)
    model: Any = load_fitted(reference.path)
    assert written_before[:3] == [1, 2, 3]
    assert written_before[3] in (3, 4)  # at most the round whose snapshot was under way is lost
    np.testing.assert_array_equal(model[2].coef_, expected[2].coef_)


def test_a_job_goes_on_only_with_the_columns_of_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, _ = written(tmp_path)
    original = snapshots.snapshot

    def dies(state: Any) -> None:
        original(state)
        if state.round == 2:  # the snapshot before is complete
            for file in data.glob("*/*.csv"):  # and a column is gone when the job comes back
                frame = pd.read_csv(file)
                frame.drop(columns=frame.columns[0]).to_csv(file, index=False)
            raise OSError("the controller dies")

    monkeypatch.setattr(svm_steps, "snapshot", dies)
    retried = svm.with_options(retries=1, retry_delay_seconds=0)
    with (
        simulating(Simulation(cancer.SITES, 2, data, tmp_path / "state")),
        pytest.raises(SitesDisagree, match="no longer those that it was made with"),
    ):
        retried(dataset="cancer", label="benign", compare_alone=False, components=20)


def test_without_a_site_it_goes_on_to_the_optimum_of_the_others_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, train, _ = written(tmp_path)
    original = site_tasks.sums

    @executor
    def sums(model: Tensors, site: Site) -> Update:
        if site.name == "b" and site.round >= 3:
            raise OSError("the disk is gone")
        return original(model, site)

    monkeypatch.setattr(site_tasks, "sums", sums)
    reference, model = run(data, quorum=0.6)
    parts = cancer.divided(train)
    rows = pd.concat([parts["a"], parts["c"]])
    label = rows["benign"].to_numpy(dtype=np.float64)
    expected = fit(model[:2].transform(rows[COLUMNS]), label, 2, 1.0)
    np.testing.assert_allclose(model[2].coef_, expected[:, :-1], rtol=0, atol=1e-7)
    assert "The model is without the rows of b." in card(reference)["notes"]


def test_sums_of_few_rows_are_noted_and_not_sent_where_the_site_says_so(tmp_path: Path) -> None:
    train, test = cancer.frames()
    by_size = train.sort_values("mean_radius")
    well, sick = by_size[by_size["benign"] == 1], by_size[by_size["benign"] == 0]
    clear = pd.concat([well.iloc[:30], sick.iloc[:2], sick.iloc[-30:]])  # all but two of them
    rest = train.drop(index=clear.index)
    parts = {"a": clear, "b": rest.iloc[:150], "c": rest.iloc[150:]}
    data = cancer.write(tmp_path, parts, test)
    reference, _ = run(data, kernel="linear")
    assert any(note.startswith("At a few rows were") for note in card(reference)["notes"])
    file = data / "a" / "datasets.yaml"
    file.write_text(file.read_text() + "privacy: {small_cell: 5}\n")
    with pytest.raises(QuorumNotReached, match="a: ConfigurationError: fewer than 5 training rows"):
        run(data, kernel="linear", quorum=1.0)


def test_pooled_support_vectors_come_near_the_pooled_svm(tmp_path: Path) -> None:
    data, train, test = written(tmp_path, raw_rows=cancer.SITES)
    reference, model = run(data, method="support_vectors", share_support_vectors=True)
    scaled = StandardScaler().fit(train[COLUMNS])
    parts = cancer.divided(train)
    vectors = [
        (rows[fitted.support_], label[fitted.support_])
        for rows, label in (
            (scaled.transform(part[COLUMNS]), part["benign"].to_numpy()) for part in parts.values()
        )
        for fitted in [SVC(gamma=1 / 30).fit(rows, label)]
    ]
    expected = SVC(gamma=1 / 30).fit(
        np.concatenate([rows for rows, _ in vectors]),
        np.concatenate([label for _, label in vectors]),
    )
    np.testing.assert_allclose(
        model.decision_function(test[COLUMNS]),
        expected.decision_function(scaled.transform(test[COLUMNS])),
        rtol=0, atol=1e-6,
    )  # fmt: skip
    whole = pooled(train).score(test[COLUMNS], test["benign"])
    assert abs((model.predict(test[COLUMNS]) == test["benign"]).mean() - whole) <= 0.02
    assert any(line.startswith("ROWS OF THE DATA") for line in card(reference)["leaves"])


def test_support_vectors_are_refused_unless_the_job_says_so_and_no_site_is_asked(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(tmp_path / "nowhere", method="support_vectors")
    said = str(caught.value)
    assert "they are rows of its training data" in said
    assert "share_support_vectors=true" in said
    assert "raw_rows: true" in said
    assert "method 'fourier'" in said


@pytest.mark.parametrize("method", ["support_vectors", "ensemble"])
def test_one_site_that_does_not_let_rows_leave_stops_the_job_and_nobody_sends_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data, train, _ = written(tmp_path, raw_rows=["a", "c"])
    sent: list[str] = []
    for kind in ("support", "member"):
        monkeypatch.setattr(site_tasks, kind, _noting(kind, sent, getattr(site_tasks, kind)))
    with pytest.raises(ConfigurationError) as caught:
        run(data, method=method, share_support_vectors=True)
    assert sent == []
    said = str(caught.value)
    rows = StandardScaler().fit(train[COLUMNS]).transform(cancer.divided(train)["b"][COLUMNS])
    kept = len(SVC(gamma=1 / 30).fit(rows, cancer.divided(train)["b"]["benign"]).support_)
    assert f"1 of the sites do not let rows of dataset 'cancer' leave: b ({kept} of its 140" in said
    assert "method 'fourier'" in said


def _noting(kind: str, sent: list[str], original: Any) -> Any:
    def noted(model: Tensors, site: Any) -> Update:
        sent.append(kind)
        return original(model, site)  # type: ignore[no-any-return]

    return executor(noted)


def test_a_site_checks_itself_that_its_rows_may_leave(tmp_path: Path) -> None:
    """A server that asks for them nevertheless gets none."""
    data, _, _ = written(tmp_path, raw_rows=["a"])
    for name, shared in (("b", True), ("a", False)):
        config: dict[str, JsonValue] = {
            "tabular": {"dataset": "cancer", "label": "benign", "objective": "binary"},
            "share_support_vectors": shared,
            "rows_leave": True,
        }
        site = Site(name, data / name, tmp_path / f"state-{name}", config)
        with pytest.raises(ConfigurationError, match="support vectors are rows of the data"):
            site_tasks.support({}, site)


@pytest.mark.parametrize("vote", ["score", "vote"])
def test_an_ensemble_holds_no_row_and_comes_near_the_pooled_svm(tmp_path: Path, vote: str) -> None:
    data, train, test = written(tmp_path)
    reference, model = run(data, method="ensemble", vote=vote)
    members = [member.estimator for _, member in model[-1].members]
    assert [type(each).__name__ for each in members] == ["LinearSVC"] * 3
    accuracy = (model.predict(test[COLUMNS]) == test["benign"]).mean()
    assert accuracy >= pooled(train).score(test[COLUMNS], test["benign"]) - 0.03
    assert ("log_loss" in reference.metrics) is True
    assert reference.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_an_ensemble_of_kernel_svms_carries_rows_where_they_may_leave(tmp_path: Path) -> None:
    data, _, _ = written(tmp_path, raw_rows=cancer.SITES)
    reference, model = run(data, method="ensemble", share_support_vectors=True, kernel="poly")
    members = [member.estimator for _, member in model[-1].members]
    assert [type(each).__name__ for each in members] == ["SVC"] * 3
    assert any(line.startswith("ROWS OF THE DATA") for line in card(reference)["leaves"])


def test_a_site_with_one_class_counts_in_fourier_and_is_named_by_the_other_methods(
    tmp_path: Path,
) -> None:
    train, test = cancer.frames()
    parts = cancer.divided(train)
    parts["b"] = parts["b"][parts["b"]["benign"] == 1]
    data = cancer.write(tmp_path, parts, test)
    with pytest.raises(ConfigurationError, match=r"site 'b' has only 1.* take method 'fourier'"):
        run(data, method="ensemble")
    reference, model = run(data, compare_alone=True)
    rows = pd.concat(parts.values())
    expected = fit(
        model[:2].transform(rows[COLUMNS]), rows["benign"].to_numpy(dtype=np.float64), 2, 1.0
    )
    np.testing.assert_allclose(model[2].coef_, expected[:, :-1], rtol=0, atol=1e-7)
    alone = {each["name"]: each["alone"] for each in card(reference)["sites"]}
    assert alone["b"]["accuracy"] == pytest.approx(test.iloc[1::3]["benign"].mean())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"kernel": "poly"}, "of the kernel 'rbf' only, not of 'poly'"),
        ({"share_support_vectors": True}, "sends no support vectors. Leave it out"),
        (
            {"method": "ensemble", "kernel": "linear", "share_support_vectors": True},
            "sends no support vectors",
        ),
    ],
)
def test_a_job_that_contradicts_itself_is_refused_before_any_site_is_asked(
    tmp_path: Path, parameters: dict[str, JsonValue], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(tmp_path / "nowhere", **parameters)


def test_sites_that_disagree_on_a_column_stop_the_job(tmp_path: Path) -> None:
    train, test = cancer.frames()
    parts = cancer.divided(train)
    parts["c"] = parts["c"].drop(columns="mean_radius")
    with pytest.raises(ConfigurationError, match="c has no column 'mean_radius'"):
        run(cancer.write(tmp_path, parts, test))


def test_text_classes_and_categories_are_predicted_from_raw_columns(tmp_path: Path) -> None:
    train, test = cancer.frames()
    for rows in (train, test):
        rows.insert(0, "size", np.where(rows["mean_radius"] > 14, "large", "small"))
        rows.insert(0, "kind", np.where(rows["benign"] == 1, "benign", "malignant"))
    parts = {
        site: rows[["size", "mean_texture", "kind"]] for site, rows in cancer.divided(train).items()
    }
    data = cancer.write(tmp_path, parts, test[["size", "mean_texture", "kind"]])
    for method in ("fourier", "ensemble"):  # which end with class numbers in different places
        _, model = run(data, label="kind", method=method, components=50)
        predicted = model.predict(test[["mean_texture", "size"]])  # in any order
        assert set(predicted) == {"benign", "malignant"}
        assert (predicted == test["kind"]).mean() > 0.8
