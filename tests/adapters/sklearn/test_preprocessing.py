"""The saved pipeline encodes original columns as the sites have encoded theirs, bit for bit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline

from prefect_federated.adapters.sklearn.preprocessing import preprocessing_of, with_preprocessing
from prefect_federated.adapters.sklearn.saved import fitted_of, load
from prefect_federated.errors import ConfigurationError, MixedTypes
from prefect_federated.executors import Site
from prefect_federated.tabular.encoding import Encoding, fit, moments_of
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.rows import columns_in, config_of, describe, load_rows
from prefect_federated.tabular.schema import Schema, agree

HEART = Path(__file__).parents[3] / "examples" / "heart" / "heart_disease_uci.csv"
DATASETS = """\
privacy: {minimum_rows: 5}
datasets:
  heart:
    csv: heart.csv
    kinds: {ward: categorical}
    forbidden: [id, dataset]
"""


def sites(folder: Path) -> tuple[dict[str, Site], dict[str, pd.DataFrame], Schema]:
    columns = ("age", "cp", "seen", "fbs", "ward", "ca", "thal", "slope")
    question = TabularQuestion(
        dataset="heart", label="num", objective="regression", test_share=0, features=columns
    )
    whole = pd.read_csv(HEART)
    random = np.random.default_rng(0)
    whole["ward"] = random.integers(1, 4, len(whole))
    hours = pd.to_timedelta(random.integers(0, 9999, len(whole)), "h")
    whole["seen"] = pd.Timestamp("2020-01-01") + hours
    frames = {
        "a": whole[whole["dataset"] == "Cleveland"],
        "b": whole[whole["dataset"] == "VA Long Beach"],
    }
    made, said = {}, {}
    for name, frame in frames.items():
        own = folder / name
        own.mkdir()
        frame.to_csv(own / "heart.csv", index=False)
        (own / "datasets.yaml").write_text(DATASETS)
        made[name] = Site(name, own, folder / f"{name}-state", config_of(question, None))
        said[name] = columns_in(describe(made[name]))
    schema = agree(said, question)
    config = config_of(question, schema)
    made = {name: Site(name, s.data, s.state, config) for name, s in made.items()}
    return made, frames, schema


@pytest.mark.parametrize("scale", [True, False])
def test_original_columns_become_the_same_numbers_as_at_the_sites(
    tmp_path: Path, scale: bool
) -> None:
    made, _, schema = sites(tmp_path)
    kinds = {feature.name: feature.kind for feature in schema.features}
    assert kinds["age"] == "numeric"
    assert kinds["fbs"] == "boolean"
    assert kinds["cp"] == kinds["ward"] == "categorical"
    assert kinds["seen"] == "datetime"
    rows = {name: load_rows(site).train for name, site in made.items()}
    encoding = fit(
        schema, {site: moments_of(part, schema) for site, part in rows.items()}, scale=scale
    )
    encode = preprocessing_of(encoding)
    (tmp_path / "model").mkdir()
    for name, content in fitted_of(encode).files.items():
        (tmp_path / "model" / name).write_bytes(content)
    loaded = load(tmp_path / "model")
    for name, part in rows.items():
        expected = encoding.transform(part.features)
        assert np.isnan(part.features["ca"]).any()  # missing numbers, categories and truths
        assert part.features["thal"].isna().any()
        original = pd.read_csv(made[name].data / "heart.csv")
        for pipeline in (encode, loaded):
            np.testing.assert_array_equal(pipeline.transform(original), expected)
        shuffled = original[original.columns[::-1]]
        np.testing.assert_array_equal(loaded.transform(shuffled), expected)
    assert len(encode[1].get_feature_names_out()) == len(encoding.names)


def test_a_category_that_no_site_has_named_is_0_in_all_columns(tmp_path: Path) -> None:
    made, frames, schema = sites(tmp_path)
    rows = [load_rows(site).train for site in made.values()]
    encoding = fit(schema, {str(n): moments_of(part, schema) for n, part in enumerate(rows)})
    frame = frames["a"].assign(cp="never met")
    found = preprocessing_of(encoding).transform(frame)
    its = [place for place, name in enumerate(encoding.names) if name.startswith("cp=")]
    assert len(its) == 4
    assert not found[:, its].any()


def test_a_column_that_is_not_there_or_holds_something_else_is_named(tmp_path: Path) -> None:
    made, frames, schema = sites(tmp_path)
    rows = [load_rows(site).train for site in made.values()]
    encode = preprocessing_of(
        fit(schema, {str(n): moments_of(part, schema) for n, part in enumerate(rows)})
    )
    with pytest.raises(ConfigurationError, match=r"not there: age\. Give a data frame"):
        encode.transform(frames["a"].drop(columns="age"))
    with pytest.raises(MixedTypes, match="column 'age'"):
        encode.transform(frames["a"].assign(age="old"))


def test_an_encoding_without_any_category_or_number_still_encodes() -> None:
    said: dict[str, object] = {
        "features": [{"name": "c", "kind": "categorical", "categories": ["x", "y"]}],
        "fill": {}, "mean": {}, "scale": {},
    }  # fmt: skip
    encode: Pipeline = preprocessing_of(Encoding.from_json(said))  # type: ignore[arg-type]
    found = encode.transform(pd.DataFrame({"c": ["y", None, "x"]}))
    np.testing.assert_array_equal(found, [[0, 1], [0, 0], [1, 0]])


def test_the_first_category_may_be_left_out() -> None:
    said: dict[str, object] = {
        "features": [
            {"name": "c", "kind": "categorical", "categories": ["x", "y"]},
            {"name": "n", "kind": "numeric", "categories": []},
        ],
        "fill": {"n": 2.0}, "mean": {"n": 2.0}, "scale": {"n": 4.0},
    }  # fmt: skip
    encoding = Encoding.from_json(said)  # type: ignore[arg-type]
    whole = with_preprocessing(encoding, Ridge().fit([[0, 0], [1, 1]], [0, 1]), drop_first=True)
    frame = pd.DataFrame({"c": ["y", "x"], "n": [None, 6.0]})
    np.testing.assert_array_equal(whole[0].transform(frame), [[1, 0], [0, 1]])
    assert len(whole.predict(frame)) == 2
