"""The executors at one site: first score, comparison alone, explanations, what stays there."""

from pathlib import Path

import numpy as np
import pytest
import xgboost

from prefect_federated.adapters.xgboost import bagging, cyclic
from prefect_federated.adapters.xgboost.matrix import booster, matrices, threads_of
from prefect_federated.adapters.xgboost.measuring import PIECES, by_value
from prefect_federated.adapters.xgboost.merge import BOOSTER, TREES, Forest, Grown, empty
from prefect_federated.adapters.xgboost.pictures import explained, gain_of, gain_png, shap_png
from prefect_federated.adapters.xgboost.saved import load, save
from prefect_federated.errors import ConfigurationError, SnapshotCorrupt
from prefect_federated.executors import Site, load_executor
from prefect_federated.messages import JsonValue, Tensors
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import columns_in, config_of
from prefect_federated.tabular.schema import agree
from tests.adapters.xgboost.grown import frame, label
from tests.flows.tables import write_sites

PARAMETERS: dict[str, JsonValue] = {
    "objective": "binary:logistic", "eta": 0.3, "max_depth": 3, "base_score": 0.4,
}  # fmt: skip


def site_at(folder: Path, rows: int = 200, **more: JsonValue) -> Site:
    """Writes a site's rows and returns the site as a site task sees it."""
    random = np.random.default_rng(5)
    features = frame(rows, random)
    table = features.assign(out=label("binary", features, random))
    data = write_sites(folder / "sites", {"a": table}) / "a"
    question = TabularQuestion(dataset="made", label="out", objective="binary")
    site = Site("a", data, folder / "state", dict(config_of(question, None)), seed=9)
    schema = agree({"a": columns_in(bagging.columns({}, site))}, question)
    config = {**config_of(question, schema), "parameters": PARAMETERS, "rounds": 6, **more}
    return Site("a", data, folder / "state", config, seed=9, round=1)


def trained(site: Site, rounds: int) -> Tensors:
    model: Tensors = empty()
    forest = Forest(model)
    for _ in range(rounds):
        sent = bagging.train(model, site)
        forest.append([Grown("a", sent.blobs[TREES], sent.weight)], 5)
        model = forest.tensors()
    return model


def test_what_is_grown_upon_kept_margins_is_what_xgboost_trains(tmp_path: Path) -> None:
    site = site_at(tmp_path, validation_share=0.25)
    model = trained(site, 5)
    part = matrices(site).fitted["train"]
    rows = xgboost.DMatrix(part.features, part.label, enable_categorical=True, nthread=1)
    expected = xgboost.train({**PARAMETERS, "nthread": 1, "tree_method": "hist"}, rows, 5)
    found = booster(model[BOOSTER]).predict(rows)
    np.testing.assert_allclose(found, expected.predict(rows), atol=1e-5)

    held = matrices(site).fitted["validation"]
    assert (part.rows, held.rows) == (120, 40)
    measured = bagging.validate(model, site)
    assert measured.metrics_weight == 40
    probability = booster(model[BOOSTER]).predict(
        xgboost.DMatrix(held.features, enable_categorical=True)
    )
    losses = -np.log(np.where(held.label == 1, probability, 1 - probability))
    assert measured.metrics["val_log_loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_a_model_of_another_attempt_does_not_meet_the_margins_of_this_one(tmp_path: Path) -> None:
    """After a lost round, the job's model goes on from other trees than the site has seen."""
    site = site_at(tmp_path)
    longer, other = trained(site, 3), trained(site_at(tmp_path / "b", rows=150), 2)
    first = bagging.train(other, site).blobs[TREES]
    fresh = bagging.train(other, site_at(tmp_path / "c")).blobs[TREES]
    assert first == fresh
    again = bagging.train(longer, site).blobs[TREES]
    assert again == bagging.train(longer, site_at(tmp_path / "d")).blobs[TREES]


def test_the_model_alone_knows_nothing_of_the_federations(tmp_path: Path) -> None:
    site = site_at(tmp_path)
    before = bagging.alone(empty(), site).metrics
    trained(site, 5)
    assert bagging.alone(empty(), site).metrics == before
    stopping = site_at(tmp_path / "b", validation_share=0.25, early_stopping_rounds=2, rounds=200)
    assert 0.5 < bagging.alone(empty(), stopping).metrics["auc"] <= 1


def test_labels_are_told_as_a_sum_unless_a_class_is_too_small(tmp_path: Path) -> None:
    site = site_at(tmp_path)
    told = bagging.labels({}, site).tensors
    out = matrices(site).fitted["train"].label
    assert (told["count"][0], told["sum"][0]) == (len(out), out.sum())
    file = site.data / "datasets.yaml"
    file.write_text(file.read_text().replace("small_cell: 5", "small_cell: 100"))
    told = bagging.labels({}, site).tensors
    assert (told["count"][0], told["sum"][0]) == (0, 0)


def test_explanations_are_means_of_many_rows_and_a_picture(tmp_path: Path) -> None:
    site = site_at(tmp_path, rows=1000)
    model = trained(site, 4)
    told = bagging.explain(model, site).tensors
    part = matrices(site).fitted["test"]
    rows = xgboost.DMatrix(part.features, enable_categorical=True)
    added = booster(model[BOOSTER]).predict(rows, pred_contribs=True)[:, :-1]
    np.testing.assert_allclose(told["absolute"], np.abs(added).mean(axis=0), rtol=1e-5)
    assert told["signed"].shape == (5, PIECES)
    x = list(part.features).index("x")
    order = np.argsort(part.features["x"].to_numpy(), kind="stable")
    expected = [added[piece, x].mean() for piece in np.array_split(order, PIECES)]
    np.testing.assert_allclose(told["signed"][x], expected, rtol=1e-5)
    assert not told["told"][list(part.features).index("colour")].any()
    assert all(array.size <= 5 * PIECES for array in told.values())  # no row among them

    mean = explained([told, told])
    assert mean is not None
    np.testing.assert_allclose(mean.absolute, told["absolute"])
    assert mean.rows == 2 * part.rows
    assert np.isnan(mean.signed[list(part.features).index("colour")]).all()
    for picture in (shap_png(map(str, part.features), mean), gain_png(gain_of(model[BOOSTER]))):
        assert picture.startswith(b"\x89PNG")

    few = site_at(tmp_path / "few", rows=60)  # 12 test rows, and the policy asks for 20
    silent = bagging.explain(trained(few, 1), few).tensors
    assert not silent["rows"][0]
    assert not silent["absolute"].any()
    assert explained([silent]) is None
    assert np.isnan(by_value(np.arange(9.0), np.ones(9), 2)[-1])


def test_a_booster_is_saved_sliced_and_loaded_or_refused(tmp_path: Path) -> None:
    model = trained(site_at(tmp_path), 4)
    (tmp_path / "model.ubj").write_bytes(save(model[BOOSTER], 3).files["model.ubj"])
    assert load(tmp_path).num_boosted_rounds() == 3
    (tmp_path / "model.ubj").write_bytes(b"{broken")
    with pytest.raises(SnapshotCorrupt, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(SnapshotCorrupt):
        load(tmp_path / "nowhere")


def test_both_modules_do_all_site_tasks_and_take_threads_as_a_whole_number(tmp_path: Path) -> None:
    for module in (bagging, cyclic):
        done = load_executor(module.__name__).functions
        assert set(done) == {
            "alone", "columns", "evaluate", "explain", "labels", "train", "validate"
        }  # fmt: skip
    with pytest.raises(ConfigurationError, match="'threads' is 0"):
        threads_of(Site("a", tmp_path, tmp_path, {"threads": 0}))
    with pytest.raises(ConfigurationError, match="'parameters' is missing"):
        cyclic.train(empty(), site_at(tmp_path / "a", parameters=None))
