"""Merged trees as an ordinary booster: against sums of leaves, and against XGBoost itself."""

from typing import Any, cast

import numpy as np
import pytest
import xgboost

from prefect_federated.adapters.xgboost.matrix import booster
from prefect_federated.adapters.xgboost.merge import (
    BOOSTER,
    ROUNDS,
    TREES,
    Forest,
    Grown,
    check,
    check_booster,
    empty,
    seen_before,
)
from prefect_federated.adapters.xgboost.trees import Tree
from prefect_federated.adapters.xgboost.ubjson import read, write
from prefect_federated.errors import ProtocolError, UpdateRejected
from prefect_federated.messages import Tensors, Update
from tests.adapters.xgboost.grown import SITES, Problem, federated, problem

CLOSE = 1e-5  # sums of tens of float32 leaves in another order


def leaf_of(tree: Tree, row: dict[str, float], names: list[str]) -> float:
    """Walks one row down a tree of the file; independent of XGBoost's own prediction."""
    members = {
        node: set(tree["categories"][start : start + size].tolist())
        for node, start, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"],
            strict=True,
        )
    }  # fmt: skip
    node = 0
    while tree["left_children"][node] != -1:
        value = row[names[tree["split_indices"][node]]]
        if np.isnan(value):
            goes_left = bool(tree["default_left"][node])
        elif tree["split_type"][node]:
            goes_left = int(value) not in members[node]
        else:
            goes_left = np.float32(value) < tree["split_conditions"][node]
        node = int(tree["left_children" if goes_left else "right_children"][node])
    return float(tree["split_conditions"][node])


@pytest.mark.parametrize("name", ["binary", "multiclass", "regression", "poisson", "ranking"])
def test_the_margin_is_the_first_score_and_the_sum_of_all_leaves(name: str) -> None:
    made = problem(name)
    model = federated(made, rounds=3)
    merged = booster(model[BOOSTER])
    document = cast(dict[str, Any], read(model[BOOSTER].tobytes()))
    inside = document["learner"]["gradient_booster"]["model"]
    assert [tree["id"] for tree in inside["trees"]] == list(range(len(inside["trees"])))
    rows = made.test.features.iloc[:40]
    coded = rows.assign(colour=rows["colour"].cat.codes.astype(float).replace(-1, np.nan))
    names = [str(column) for column in rows]
    classes = max(made.classes, 1)
    expected = np.full((len(rows), classes), made.first_margin)
    for place, row in enumerate(coded.to_dict("records")):
        for tree, of in zip(inside["trees"], inside["tree_info"], strict=True):
            expected[place, of] += leaf_of(tree, cast(dict[str, float], row), names)
    matrix = xgboost.DMatrix(rows, enable_categorical=True)
    margin = merged.predict(matrix, output_margin=True).reshape(len(rows), classes)
    np.testing.assert_allclose(margin, expected, rtol=0, atol=CLOSE)
    if name == "multiclass":
        assert inside["tree_info"] == [0, 1, 2] * (len(inside["trees"]) // 3)

    added = merged.predict(matrix, pred_contribs=True).sum(axis=-1).reshape(len(rows), classes)
    np.testing.assert_allclose(added, margin, rtol=0, atol=CLOSE)


def test_stock_xgboost_slices_the_merged_model_by_rounds_and_boosts_it_further() -> None:
    made = problem("binary")
    merged = booster(federated(made, rounds=4)[BOOSTER])
    assert merged.num_boosted_rounds() == 4
    matrix = xgboost.DMatrix(made.test.features, enable_categorical=True)
    parts = [merged[n : n + 1].predict(matrix, output_margin=True) for n in range(4)]
    whole = merged.predict(matrix, output_margin=True)
    np.testing.assert_allclose(
        sum(part - made.first_margin for part in parts) + made.first_margin, whole, atol=CLOSE
    )
    first = booster(federated(made, rounds=2)[BOOSTER])
    np.testing.assert_array_equal(merged[:2].predict(matrix), first.predict(matrix))

    train = xgboost.DMatrix(made.pooled.features, made.pooled.label, enable_categorical=True)
    longer = xgboost.train(made.parameters, train, 3, xgb_model=merged)
    assert longer.num_boosted_rounds() == 7
    label = made.pooled.label
    losses = [
        float(-np.log(np.where(label == 1, p, 1 - p)).mean())
        for p in (merged.predict(train), longer.predict(train))
    ]
    assert losses[1] < losses[0]
    again = xgboost.Booster()
    again.load_model(bytearray(merged.save_raw("json")))
    np.testing.assert_array_equal(again.predict(matrix), merged.predict(matrix))


def test_one_site_alone_grows_what_xgboost_trains_by_itself() -> None:
    """Margins as a start instead of earlier trees change only the order of float32 sums."""
    for name in ("binary", "multiclass"):
        made = problem(name)
        only = {"a": made.sites["a"]}
        model = federated(made, rounds=5, sites=only)
        matrix = xgboost.DMatrix(
            only["a"].features, only["a"].label, enable_categorical=True, nthread=1
        )
        expected = xgboost.train(made.parameters, matrix, 5)
        np.testing.assert_allclose(
            booster(model[BOOSTER]).predict(matrix), expected.predict(matrix), atol=CLOSE
        )


def test_sites_weigh_by_their_rows_whatever_the_order_of_their_answers() -> None:
    made = problem("regression")
    forward = federated(made, rounds=2)
    backward = federated(made, rounds=2, order=list(reversed(SITES)))
    assert forward[BOOSTER].tobytes() == backward[BOOSTER].tobytes()

    merged = booster(forward[BOOSTER])[:1]
    matrix = xgboost.DMatrix(made.test.features, enable_categorical=True)
    total = sum(part.rows for part in made.sites.values())
    expected = np.full(made.test.rows, made.first_margin)
    for part in made.sites.values():
        own = xgboost.train(
            made.parameters,
            xgboost.DMatrix(part.features, part.label, enable_categorical=True, nthread=1), 1,
        )  # fmt: skip
        expected += part.rows / total * (own.predict(matrix) - made.first_margin)
    np.testing.assert_allclose(merged.predict(matrix), expected, rtol=1e-5)


def test_a_forest_read_from_a_snapshot_goes_on_as_the_one_that_wrote_it() -> None:
    made = problem("binary")
    whole = federated(made, rounds=4)
    half = federated(made, rounds=2)
    resumed = federated(made, rounds=4, start=half)
    assert resumed[BOOSTER].tobytes() == whole[BOOSTER].tobytes()
    np.testing.assert_array_equal(resumed[ROUNDS], whole[ROUNDS])
    seen = half[ROUNDS].tolist()
    assert seen_before(whole[ROUNDS], seen) == 2
    assert seen_before(whole[ROUNDS], [*seen, 7]) == 0  # of another attempt of the job


def _grown(made: Problem) -> Tensors:
    return federated(made, rounds=1)


@pytest.mark.parametrize(
    ("key", "place", "value", "told"),
    [
        ("left_children", 0, 0, "not one tree"),
        ("right_children", 0, 10**6, "not one tree"),
        ("split_indices", 0, 77, "a column beyond the"),
        ("split_conditions", 1, np.nan, "not finite"),
        ("parents", 1, 1, "parents"),
    ],
)
def test_a_damaged_tree_is_refused_with_the_sites_name(
    key: str, place: int, value: float, told: str
) -> None:
    made = problem("regression")
    document = cast(dict[str, Any], read(made.grow("a", empty())))
    document["learner"]["gradient_booster"]["model"]["trees"][0][key][place] = value
    forest = Forest(empty())
    with pytest.raises(UpdateRejected, match=f"site 'a' sent a tree .*{told}"):
        forest.append([Grown("a", write(document), 10)], len(made.test.features.columns))


def test_trees_of_another_model_are_refused_with_what_differs() -> None:
    made = problem("binary")
    features = len(made.test.features.columns)
    document = cast(dict[str, Any], read(made.grow("b", empty())))
    document["version"] = [2, 1, 4]
    grown = [Grown("a", made.grow("a", empty()), 10), Grown("b", write(document), 10)]
    with pytest.raises(UpdateRejected, match=r"'b' sent trees of another model.*version\[0\] is 2"):
        Forest(empty()).append(grown, features)
    with pytest.raises(UpdateRejected, match="'c' sent no booster"):
        Forest(empty()).append([Grown("c", b"{not one", 1)], features)
    with pytest.raises(UpdateRejected, match="'c' sent no trees"):
        Grown.of(Update(site="c", blobs={}))
    assert Grown.of(Update(site="c", weight=3, blobs={TREES: b"x"})) == Grown("c", b"x", 3)


def test_a_whole_model_from_a_site_is_checked_like_trees() -> None:
    model = _grown(problem("binary"))
    assert check(model, 5, "a") is model
    with pytest.raises(UpdateRejected, match=r"site 'a' sent .* names 2 of them"):
        check({**model, ROUNDS: np.zeros(2, np.uint64)}, 5, "a")
    with pytest.raises(UpdateRejected, match=r"site 'a' sent a tree .* a column beyond the 1"):
        check(model, 1, "a")
    with pytest.raises(UpdateRejected, match="site 'a' sent a model that is no booster"):
        check_booster(np.frombuffer(b"{}", np.uint8), 5, "a")


def test_what_is_no_ubjson_is_an_error_of_ours_and_not_a_crash() -> None:
    raw = federated(problem("binary"), rounds=1)[BOOSTER].tobytes()
    again = booster(np.frombuffer(write(cast(dict[str, Any], read(raw))), np.uint8))
    assert again.save_raw("ubj") == booster(np.frombuffer(raw, np.uint8)).save_raw("ubj")
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(raw[: random.integers(1, len(raw))])
        broken[random.integers(len(broken))] ^= 1 << random.integers(8)
        with pytest.raises(ProtocolError):
            read(bytes(broken))
    with pytest.raises(ProtocolError):
        read(b"[" * 5000)
    with pytest.raises(ProtocolError, match="follow the end"):
        read(b"ZZ")
