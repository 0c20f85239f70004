"""Encoding fitted from the sites' sums, against pandas on the pooled rows."""

import json

import numpy as np
import pandas as pd
import pytest

from prefect_federated.adapters.sklearn import learning, svm
from prefect_federated.errors import UpdateRejected
from prefect_federated.kmeans import site as kmeans
from prefect_federated.linear import site as linear
from prefect_federated.tabular.encoding import Encoding, fit, moments_of
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import Part
from prefect_federated.tabular.schema import Feature, Schema
from tests.tabular.conftest import MakeSite, asking

SCHEMA = Schema(
    features=(
        Feature(name="age", kind="numeric"),
        Feature(name="town", kind="categorical", categories=("Bern", "Chur")),
        Feature(name="far", kind="numeric"),
        Feature(name="one", kind="numeric"),
    )
)


def frame(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "age": random.normal(60, 10, rows),
            "town": pd.Categorical(random.choice(["Bern", "Chur"], rows), ["Bern", "Chur"]),
            "far": 1e9 + random.normal(0, 1, rows),
            "one": 3.0,
        }
    )
    made.loc[: rows // 5, "age"] = np.nan
    made.loc[1, "town"] = np.nan
    return made


def part(made: pd.DataFrame) -> Part:
    return Part(made, np.zeros(0))


def test_scaling_is_that_of_the_pooled_rows() -> None:
    frames = [frame(30, 0), frame(400, 1), frame(7, 2)]
    encoding = fit(
        SCHEMA, {f"site-{n}": moments_of(part(each), SCHEMA) for n, each in enumerate(frames)}
    )
    pooled = pd.concat(frames, ignore_index=True)
    assert encoding.names == ("age", "town=Bern", "town=Chur", "far", "one")
    for name in ("age", "far"):
        assert encoding.mean[name] == pytest.approx(pooled[name].mean(), rel=1e-12)
        assert encoding.scale[name] == pytest.approx(pooled[name].std(ddof=0), rel=1e-7)
    assert encoding.scale["one"] == 1  # what does not vary is not divided
    found = encoding.transform(pooled)
    assert found.shape == (437, 5)
    assert np.isfinite(found).all()
    assert found[0, 0] == 0  # the mean stands for what is missing
    assert found[1, 1:3].tolist() == [0, 0]
    assert found[:, 1].sum() == (pooled["town"] == "Bern").sum()
    back = Encoding.from_json(json.loads(json.dumps(encoding.to_json())))
    assert (back.transform(pooled) == found).all()


def test_without_scaling_only_gaps_are_filled() -> None:
    made = frame(50, 3)
    encoding = fit(SCHEMA, {"site-1": moments_of(part(made), SCHEMA)}, scale=False)
    there = made["age"].notna()
    assert (encoding.transform(made)[there, 0] == made["age"][there]).all()
    assert encoding.transform(made)[0, 0] == pytest.approx(made["age"].mean())


def test_moments_that_do_not_fit_are_refused() -> None:
    good = moments_of(part(frame(20, 0)), SCHEMA)
    for wrong in (
        {"count": good["count"]},
        {**good, "mean": np.zeros(2)},
        {**good, "m2": np.full(3, np.nan)},
        {**good, "count": -good["count"]},
    ):
        with pytest.raises(UpdateRejected, match="site 'site-2': the moments' "):
            fit(SCHEMA, {"site-1": good, "site-2": wrong})


def test_moments_of_few_values_stay_where_the_policy_says_so_in_every_kind_of_job(
    make_site: MakeSite,
) -> None:
    rows = pd.DataFrame({"age": [50.0] * 30, "rare": [7.0, *[np.nan] * 29]})
    question = TabularQuestion(dataset="people", objective="none", label=None, test_share=0)
    schema = Schema(features=tuple(Feature(name=n, kind="numeric") for n in rows), classes=())
    for privacy, expected in (("{small_cell: 5}", [30, 0]), ("{minimum_rows: 1}", [30, 1])):
        site = asking(make_site(rows, privacy, privacy), question, schema)
        for module in (kmeans, linear, svm):
            assert module.moments({}, site).tensors["count"].tolist() == expected
        task = learning.main.federated_executors()["moments"]
        assert task({}, site).tensors["count"].tolist() == expected
