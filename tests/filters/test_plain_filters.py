"""Norm clipping, exclusion by name and differences, against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_federated.errors import FilterFailed, UpdateRejected
from prefect_federated.filters import Filters, Passage, Point, rows_of
from prefect_federated.messages import Message, Tensors
from tests.filters.parts import entering_server, leaving_site, normal, rows, there_and_back


def distance(tensors: Tensors, model: Tensors) -> float:
    changes = [
        (tensors[name].astype("c16") - model[name].astype("c16")).reshape(-1)
        for name in tensors
        if np.issubdtype(tensors[name].dtype, np.inexact)
    ]
    return float(np.linalg.norm(np.concatenate(changes)))


@given(factor=st.floats(1e-3, 1e3), max_norm=st.floats(1e-2, 1e3), seed=st.integers(0, 99))
def test_a_clipped_change_has_at_most_the_norm_and_its_own_direction(
    factor: float, max_norm: float, seed: int
) -> None:
    weights, bias = normal(30, 10, seed=seed), normal(7).astype("f8")
    model: Tensors = {"w": weights, "v": bias, "n": np.arange(3)}
    update: Tensors = {
        "w": (weights + factor * normal(30, 10, seed=seed + 1)).astype("f4"),
        "v": bias + factor,
        "n": np.arange(3) + 1000,
    }
    sent, _ = there_and_back({"filter": "clip", "max_norm": max_norm}, Message({}, update), model)
    norm = distance(update, model)
    # The model is of size 5, each element of the result rounded to float32: 5e-7 each, 300 of them.
    assert distance(sent.tensors, model) <= max_norm * (1 + 1e-6) + 1e-5
    assert rows_of(sent.header)[0].notes == {"norm": pytest.approx(norm, rel=1e-6)}
    assert sent.tensors["n"] is update["n"]
    if norm <= max_norm:
        assert sent.tensors["w"] is update["w"]
    else:
        expected = model["v"] + (update["v"] - model["v"]) * (max_norm / norm)
        np.testing.assert_allclose(sent.tensors["v"], expected, rtol=1e-6, atol=1e-12)


def test_what_the_model_lacks_counts_in_full_and_is_clipped_too() -> None:
    update = Message({}, {"w": np.array([3.0]), "new": np.array([4j], "c8")})
    sent, _ = there_and_back({"filter": "clip", "max_norm": 1}, update, {"w": np.zeros(1)})
    np.testing.assert_allclose(sent.tensors["w"], [0.6])
    np.testing.assert_allclose(sent.tensors["new"], [0.8j], rtol=1e-6)


def test_clipping_at_the_servers_entrance_bounds_what_a_site_says_is_a_difference() -> None:
    model = {"w": np.full(4, 10.0)}
    clip: dict[str, object] = {"filter": "clip", "at": "entering_server", "max_norm": 1.0}
    update = Message({"difference": True, "is_difference": True}, {"w": np.zeros(4)})
    got = Filters.of([clip]).run(Point.ENTERING_SERVER, update, entering_server(model))
    np.testing.assert_allclose(got.tensors["w"], np.full(4, 9.5))

    both = Filters.of([{"filter": "difference", "at": "leaving_site"}, clip])
    update = Message({}, {"w": np.full(4, 10.0)})
    got = both.run(Point.ENTERING_SERVER, update, entering_server(model))
    np.testing.assert_allclose(got.tensors["w"], np.full(4, 0.5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_without_a_finite_norm_cannot_be_clipped(value: float) -> None:
    update = Message({}, {"w": np.array([value, 1])})
    clip = Filters.of(
        [
            {"filter": "clip", "at": "leaving_site", "max_norm": 1.0},
            {"filter": "clip", "at": "entering_server", "max_norm": 1.0},
        ]
    )
    with pytest.raises(FilterFailed, match="NaN or infinity"):
        clip.run(Point.LEAVING_SITE, update, leaving_site({}))
    with pytest.raises(UpdateRejected, match=r"site 'clinic-a'.*'clip'.*NaN or infinity"):
        clip.run(Point.ENTERING_SERVER, update, entering_server({}))


def test_excluded_names_do_not_travel_and_are_not_expected() -> None:
    tensors = {"body.w": np.ones(3), "head.w": np.ones(5), "head.norm": np.ones(1)}
    specs: list[dict[str, object]] = [
        {"filter": "exclude", "at": "leaving_site", "names": ["head.*"], "keep": ["*.norm"]},
        {"filter": "exclude", "at": "leaving_site", "names": ["body.w"], "kinds": ["evaluate"]},
        {"filter": "exclude", "at": "entering_server", "names": ["*"]},
    ]
    filters = Filters.of(specs)
    sent = filters.run(Point.LEAVING_SITE, Message({}, tensors, {"b": b"blob"}), leaving_site())
    assert list(sent.tensors) == ["body.w", "head.norm"]
    assert sent.blobs == {"b": b"blob"}
    assert rows(sent) == [["leaving_site", "exclude", 76, 36, {}]]
    assert list(filters.expected(tensors)) == ["body.w", "head.norm"]
    assert list(filters.expected(tensors, "evaluate")) == ["head.norm"]


def test_what_is_excluded_on_the_way_to_the_sites_is_not_expected_back() -> None:
    filters = Filters.of([{"filter": "exclude", "at": "leaving_server", "names": ["head.*"]}])
    assert filters.expected({"body.w": 1, "head.w": 2}) == {"body.w": 1}


def test_a_difference_is_of_floats_and_leaves_all_else() -> None:
    model = {"w": normal(50, 3), "steps": np.array(5), "mask": np.array([True])}
    update = {"w": model["w"] + 1, "steps": np.array(9), "mask": np.array([False])}
    sent, got = there_and_back({"filter": "difference"}, Message({}, update), model)
    np.testing.assert_array_equal(got.tensors["w"], update["w"] - model["w"])
    assert got.tensors["steps"] is update["steps"]
    assert got.tensors["mask"] is update["mask"]
    assert not got.tensors["w"].flags.writeable
    assert sent.size_bytes == Message({}, update).size_bytes


def test_a_difference_from_a_tensor_that_the_model_lacks_fails() -> None:
    for model in ({}, {"w": np.ones(4, "f4")}, {"w": np.ones(3, "f8")}):
        with pytest.raises(FilterFailed, match=r"no tensor 'w' of float32 \(3,\) to subtract"):
            there_and_back({"filter": "difference"}, Message({}, {"w": np.ones(3, "f4")}), model)


def test_the_initial_model_is_excluded_from_but_not_clipped_encoded_or_subtracted_from() -> None:
    filters = Filters.of(
        [
            {"filter": "exclude", "at": "leaving_site", "names": ["head"]},
            {"filter": "difference", "at": "leaving_site"},
            {"filter": "clip", "at": "leaving_site", "max_norm": 1e-3},
            {"filter": "int8", "at": "leaving_site"},
        ]
    )
    initial = Message({}, {"w": normal(5000), "head": np.ones(3)})
    sent = filters.run(Point.LEAVING_SITE, initial, Passage(Point.LEAVING_SITE, kind="initialize"))
    assert list(sent.tensors) == ["w"]
    assert sent.tensors["w"] is initial.tensors["w"]
    assert not filters.has(Point.ENTERING_SERVER, "train")
    assert filters.has(Point.LEAVING_SITE, "initialize")
