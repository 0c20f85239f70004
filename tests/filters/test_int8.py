"""One byte an element: its error, its bytes, its memory, and what is not finite."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from prefect_federated.errors import FilterFailed
from prefect_federated.filters import decode
from prefect_federated.filters.int8 import Int8
from prefect_federated.messages import Message
from tests.filters.parts import entering_server, leaving_site, normal, rows, there_and_back


def test_each_element_is_off_by_at_most_half_a_step_of_its_own_block() -> None:
    tensor = normal(10_000)
    tensor[17] = 1000  # an outlier, which coarsens its own block only
    _, got = there_and_back({"filter": "int8", "block": 100}, Message({}, {"w": tensor}))
    error = np.abs(got.tensors["w"] - tensor).reshape(-1, 100).max(axis=1)
    largest = np.abs(tensor).reshape(-1, 100).max(axis=1)
    assert (error <= largest / 254 * (1 + 1e-5)).all()  # 1e-5: float32's rounding of the scale
    assert error[0] > 1
    assert error[1:].max() < 0.03


def test_the_bytes_are_one_an_element_and_four_a_block() -> None:
    message = Message({}, {"w": normal(3, 1000), "b": normal(10), "n": np.arange(500)})
    sent, _ = there_and_back({"filter": "int8", "block": 1000}, message)
    assert sent.tensors["w"].nbytes == 3 * 1000 + 3 * 4
    assert sent.tensors["b"] is message.tensors["b"]
    assert sent.tensors["n"] is message.tensors["n"]
    assert rows(sent) == [["leaving_site", "int8", 12_000 + 40 + 4000, 3012 + 40 + 4000, {}]]
    assert sum(tensor.nbytes for tensor in sent.tensors.values()) == 3012 + 40 + 4000


def test_whole_steps_of_the_scale_arrive_exactly() -> None:
    steps = np.arange(-127, 128, dtype="f4")
    tensor = np.tile(steps, 3) * np.float32(0.25)
    _, got = there_and_back({"filter": "int8", "block": 255}, Message({}, {"w": tensor}))
    np.testing.assert_allclose(got.tensors["w"], tensor, rtol=1e-6)


@given(
    tensor=arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        array_shapes(min_dims=0, max_dims=3, max_side=8),
        elements=st.floats(-1e4, 1e4, width=16),
    ),
    block=st.integers(16, 100),
    has_model=st.booleans(),
)
def test_any_floats_come_back_within_a_step(
    tensor: np.ndarray[tuple[int, ...], np.dtype[np.float32]], block: int, has_model: bool
) -> None:
    model = {"w": np.full(tensor.shape, 0.5, tensor.dtype)} if has_model else None
    spec = {"filter": "int8", "block": block, "min_elements": 1}
    _, got = there_and_back(spec, Message({}, {"w": tensor}), model)
    back = got.tensors["w"]
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    change = np.abs(tensor.astype("f8") - (0.5 if has_model else 0)).max(initial=0)
    # Half a step, and the rounding of the result to the tensor's own dtype.
    rounding = float(np.finfo(tensor.dtype).eps) * (change + 1)
    np.testing.assert_allclose(
        back.astype("f8"), tensor.astype("f8"), rtol=0, atol=change / 254 * 1.001 + rounding
    )


def test_what_is_quantized_is_the_change_of_the_received_model() -> None:
    model = {"w": normal(5000)}
    update = {"w": model["w"] + np.float32(1e-3) * normal(5000, seed=1)}
    _, got = there_and_back({"filter": "int8"}, Message({}, update), model)
    # Half a step: the largest change, about 4e-3, over 254; float32's rounding of the sum is 1e-7.
    np.testing.assert_allclose(got.tensors["w"], update["w"], rtol=0, atol=2e-5)
    _, plain = there_and_back({"filter": "int8", "on": "tensors"}, Message({}, update), model)
    assert np.abs(plain.tensors["w"] - update["w"]).max() > 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_and_names_the_tensor(value: float) -> None:
    tensor = normal(1000)
    tensor[999] = value
    with pytest.raises(FilterFailed, match=r"'int8' at 'leaving_site'.*'w' holds NaN or infinity"):
        there_and_back({"filter": "int8"}, Message({}, {"w": tensor}))


def test_zeros_and_the_smallest_numbers_are_no_trouble() -> None:
    tensor = np.zeros(1000, "f4")
    tensor[5] = 1e-44
    _, got = there_and_back({"filter": "int8"}, Message({}, {"w": tensor}))
    np.testing.assert_array_equal(got.tensors["w"], np.zeros(1000))


def test_encoding_needs_little_memory_beside_its_result() -> None:
    model = {"w": normal(4_000_000)}
    update = Message({}, {"w": model["w"] * np.float32(1.01)})
    passage = leaving_site(model)
    tracemalloc.start()
    try:
        sent = Int8(feedback=False)(update, passage)
        _, encoding = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        decode(sent, entering_server(model))
        _, decoding = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert encoding < sent.size_bytes + 2_000_000
    assert decoding - before < update.size_bytes + 2_000_000
