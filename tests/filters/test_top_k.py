"""Only the largest changes: which they are, ties, indices, and what is left alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prefect_federated.errors import FilterFailed
from prefect_federated.filters import Filters, Point, decode
from prefect_federated.messages import Message, Tensor
from tests.filters.parts import entering_server, leaving_site, normal, rows, there_and_back


def test_the_largest_changes_arrive_and_all_else_is_the_models() -> None:
    model = {"w": normal(400, 500)}
    change = normal(400, 500, seed=1)
    update = Message({}, {"w": model["w"] + change})
    sent, got = there_and_back({"filter": "top_k", "fraction": 0.01}, update, model)
    exact = np.abs((update.tensors["w"] - model["w"]).reshape(-1))
    largest = np.sort(np.argsort(exact)[-2000:])
    np.testing.assert_array_equal(sent.tensors["w#at"], largest)
    assert sent.tensors["w#at"].dtype == np.uint32
    expected = model["w"].reshape(-1).copy()
    expected[largest] = update.tensors["w"].reshape(-1)[largest]
    # The change and the sum are each rounded once to float32; values are up to about 9.
    np.testing.assert_allclose(got.tensors["w"].reshape(-1), expected, rtol=0, atol=2e-6)
    assert rows(sent) == [["leaving_site", "top_k", 800_000, 16_000, {}]]


@given(
    change=arrays(
        np.float32,
        st.integers(40, 300),
        elements=st.one_of(st.just(0.0), st.sampled_from([1.0, -1.0]), st.floats(-9, 9, width=32)),
    ),
    count=st.integers(1, 12),
)
def test_it_sends_exactly_so_many_and_none_larger_stays_behind(
    change: np.ndarray[tuple[int], np.dtype[np.float32]], count: int
) -> None:
    model = {"w": np.zeros(change.shape, "f4")}
    spec = {"filter": "top_k", "count": count, "min_elements": 1}
    sent, got = there_and_back(spec, Message({}, {"w": change}), model)
    at = sent.tensors["w#at"]
    assert len(at) == count
    np.testing.assert_array_equal(sent.tensors["w"], change[at])
    rest = np.delete(np.abs(change), at)
    assert rest.max(initial=0) <= np.abs(change[at]).min()
    expected = np.zeros_like(change)
    expected[at] = change[at]
    np.testing.assert_array_equal(got.tensors["w"], expected)


def test_equal_magnitudes_across_pieces_are_sent_up_to_the_count() -> None:
    tensor = np.ones(200_000, "f4")
    tensor[150_000] = 2
    sent, _ = there_and_back(
        {"filter": "top_k", "count": 70_000}, Message({}, {"w": tensor}), {"w": tensor * 0}
    )
    at = sent.tensors["w#at"]
    assert len(at) == 70_000
    assert at[-1] == 150_000
    np.testing.assert_array_equal(at[:-1], np.arange(69_999))


def test_what_the_model_lacks_is_not_made_sparse_unless_asked() -> None:
    tensor = normal(1000)
    sent, _ = there_and_back({"filter": "top_k", "fraction": 0.1}, Message({}, {"w": tensor}))
    assert sent.tensors["w"] is tensor
    spec = {"filter": "top_k", "fraction": 0.1, "on": "tensors"}
    sent, got = there_and_back(spec, Message({}, {"w": tensor}))
    assert sent.tensors["w"].shape == (100,)
    assert np.count_nonzero(got.tensors["w"]) == 100


def test_a_tensor_that_would_not_get_smaller_travels_as_it_is() -> None:
    tensor = normal(1000)
    model = {"w": np.zeros(1000, "f4")}
    sent, _ = there_and_back(
        {"filter": "top_k", "fraction": 0.6}, Message({}, {"w": tensor}), model
    )
    assert sent.tensors["w"] is tensor


def test_differences_are_sparse_and_come_back_as_differences() -> None:
    model = {"w": normal(1000), "steps": np.array(3)}
    update = Message({}, {"w": model["w"] + normal(1000, seed=1), "steps": np.array(9)})
    filters = Filters.of(
        [
            {"filter": "difference", "at": "leaving_site"},
            {"filter": "top_k", "at": "leaving_site", "count": 10},
        ]
    )
    sent = filters.run(Point.LEAVING_SITE, update, leaving_site(model))
    got = decode(sent, entering_server(model)).tensors
    assert np.count_nonzero(got["w"]) == 10
    at = np.flatnonzero(got["w"])
    np.testing.assert_array_equal(got["w"][at], (update.tensors["w"] - model["w"])[at])
    assert got["steps"] == 9


def test_the_chosen_values_can_be_encoded_further() -> None:
    model = {"w": normal(10_000), "v": normal(20_000)}
    update = Message({}, {name: tensor + normal(tensor.size) for name, tensor in model.items()})
    specs: list[dict[str, object]] = [
        {"filter": "top_k", "at": "leaving_site", "fraction": 0.1},
        {"filter": "int8", "at": "leaving_site", "block": 100},
    ]
    sent = Filters.of(specs).run(Point.LEAVING_SITE, update, leaving_site(model))
    assert sent.tensors["w"].nbytes == 1000 + 40
    assert [row[3] for row in rows(sent) if isinstance(row, list)] == [24_000, 3_120 + 12_000]
    got = decode(sent, entering_server(model))
    assert list(got.tensors) == ["w", "v"]
    at = sent.tensors["w#at"]
    np.testing.assert_allclose(got.tensors["w"][at], update.tensors["w"][at], rtol=0, atol=5 / 254)


def test_a_name_that_the_indices_need_is_refused() -> None:
    tensors: dict[str, Tensor] = {"w": normal(1000), "w#at": np.arange(3)}
    with pytest.raises(FilterFailed, match="'w#at' is needed for the encoding"):
        there_and_back(
            {"filter": "top_k", "count": 3}, Message({}, tensors), {"w": np.zeros(1000, "f4")}
        )


def test_what_is_not_finite_fails() -> None:
    tensor = normal(1000)
    tensor[0] = np.nan
    with pytest.raises(FilterFailed, match="'w' holds NaN or infinity"):
        there_and_back(
            {"filter": "top_k", "count": 3}, Message({}, {"w": tensor}), {"w": normal(1000)}
        )
