"""Sixteen bits: against NumPy's own float16, and bfloat16 worked out from the bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from prefect_federated.filters import as_received, decode
from prefect_federated.filters.cast import Cast
from prefect_federated.messages import Message
from tests.filters.parts import entering_server, leaving_site, normal, rows, there_and_back

FLOATS = arrays(
    st.sampled_from([np.float32, np.float64]),
    array_shapes(min_dims=0, max_dims=3, max_side=6),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def test_float16_arrives_as_numpy_rounds_it() -> None:
    tensor = normal(70_001)
    sent, got = there_and_back({"filter": "cast", "to": "float16"}, Message({}, {"w": tensor}))
    assert sent.tensors["w"].dtype == np.float16
    assert got.tensors["w"].dtype == np.float32
    np.testing.assert_array_equal(got.tensors["w"], tensor.astype("f2").astype("f4"))
    assert rows(sent) == [["leaving_site", "cast", 280_004, 140_002, {}]]


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000], np.uint32)
    expected = np.array([0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF80], np.uint16)
    message = Message({}, {"w": bits.view(np.float32)})
    sent, got = there_and_back({"filter": "cast", "to": "bfloat16"}, message)
    np.testing.assert_array_equal(sent.tensors["w"], expected)
    np.testing.assert_array_equal(
        got.tensors["w"].view(np.uint32), expected.astype(np.uint32) << np.uint32(16)
    )


@given(tensor=FLOATS)
def test_bfloat16_is_off_by_at_most_half_a_step_and_keeps_what_is_not_finite(
    tensor: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    _, got = there_and_back({"filter": "cast", "to": "bfloat16"}, Message({}, {"w": tensor}))
    back = got.tensors["w"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    np.testing.assert_array_equal(np.isnan(back), np.isnan(tensor))
    np.testing.assert_array_equal(np.isinf(back), np.isinf(tensor))
    finite = np.isfinite(tensor)
    # Eight bits of fraction, the first not written: half a step is 2**-9 of the value; below
    # float32's normal numbers the step is 2**-133.
    np.testing.assert_allclose(back[finite], tensor[finite], rtol=2**-8, atol=2**-133)


@pytest.mark.parametrize("nan", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_every_nan_stays_a_nan_in_bfloat16(nan: int) -> None:
    tensor = np.array([nan, 0x3F800000], np.uint32).view(np.float32)
    _, got = there_and_back({"filter": "cast", "to": "bfloat16"}, Message({}, {"w": tensor}))
    assert np.isnan(got.tensors["w"][0])
    assert got.tensors["w"][1] == 1


@pytest.mark.parametrize(
    ("to", "value", "dtype"),
    [("float16", 70_000.0, "f4"), ("float16", 1e300, "f8"), ("bfloat16", 3.4e38, "f4")],
)
def test_a_tensor_beyond_the_range_travels_in_its_own_dtype(
    to: str, value: float, dtype: str
) -> None:
    large = np.array([value, 1.0], dtype)
    message = Message({}, {"large": large, "small": np.ones(5, "f4")})
    sent, got = there_and_back({"filter": "cast", "to": to}, message)
    assert sent.tensors["large"] is large
    assert sent.tensors["small"].itemsize == 2
    np.testing.assert_array_equal(got.tensors["large"], large)


def test_integers_booleans_complex_and_float16_pass_untouched() -> None:
    tensors = {
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "phase": np.ones(3, np.complex64),
        "half": np.ones(3, np.float16),
        "none": np.ones((0, 3), np.float32),
    }
    message = Message({"id": "t"}, tensors)
    sent, got = there_and_back({"filter": "cast", "to": "bfloat16"}, message)
    assert all(sent.tensors[name] is tensor for name, tensor in tensors.items())
    assert "encodings" not in sent.header
    assert list(got.tensors) == list(tensors)


def test_a_small_step_of_a_large_weight_is_not_lost() -> None:
    model = {"w": np.full(1000, 100.0, "f4")}
    update = {"w": model["w"] + np.float32(0.01)}  # bfloat16 has steps of 0.5 at 100
    _, got = there_and_back({"filter": "cast", "to": "bfloat16"}, Message({}, update), model)
    np.testing.assert_allclose(got.tensors["w"] - model["w"], 0.01, rtol=2**-8, atol=1e-5)
    spec = {"filter": "cast", "to": "bfloat16", "on": "tensors"}
    _, plain = there_and_back(spec, Message({}, update), model)
    np.testing.assert_array_equal(plain.tensors["w"], model["w"])


def test_the_sites_reference_is_the_model_as_they_decoded_it() -> None:
    model = Message({"kind": "train"}, {"w": normal(300)})
    sent = Cast(to="float16")(model, leaving_site())
    received = as_received(sent)
    np.testing.assert_array_equal(received.tensors["w"], model.tensors["w"].astype("f2"))
    assert not received.tensors["w"].flags.writeable
    assert "encodings" not in received.header
    assert as_received(model) is model

    update = Message({}, {"w": received.tensors["w"] + np.float32(1)})
    encoded = Cast(to="float16")(update, leaving_site(received.tensors))
    got = decode(encoded, entering_server(received.tensors))
    np.testing.assert_allclose(got.tensors["w"], update.tensors["w"], rtol=0, atol=1e-6)


def test_arrays_of_any_memory_layout_are_encoded() -> None:
    tensor = np.asfortranarray(normal(30, 20))[::2]
    _, got = there_and_back({"filter": "cast", "to": "float16"}, Message({}, {"w": tensor}))
    np.testing.assert_array_equal(got.tensors["w"], tensor.astype("f2"))
    swapped = tensor.astype(">f8")
    _, got = there_and_back({"filter": "cast", "to": "float16"}, Message({}, {"w": swapped}))
    np.testing.assert_array_equal(got.tensors["w"], tensor.astype("f2"))
