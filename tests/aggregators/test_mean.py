"""The weighted mean, against NumPy's own in float64."""

import tracemalloc
import weakref
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_federated.aggregators import weighted_mean
from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Reply, SiteFailure, Tensor, Update

RANDOM = np.random.default_rng(11)


def mean_of(arrays: list[Tensor], weights: list[float]) -> NDArray[np.float64]:
    got = weighted_mean(updates_of(arrays, weights))["w"]
    assert got.dtype == np.float64
    return np.asarray(got, np.float64)


def updates_of(arrays: list[Tensor], weights: list[float]) -> list[Reply]:
    return [
        Update({"w": array}, weight=weight, site=f"site-{i}")
        for i, (array, weight) in enumerate(zip(arrays, weights, strict=True), start=1)
    ]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (40, 7), (600_001,)])
def test_the_mean_is_numpys_in_float64(shape: tuple[int, ...]) -> None:
    arrays = [np.asarray(RANDOM.normal(size=shape)) for _ in range(5)]
    weights = [304.0, 293.0, 123.0, 200.0, 0.5]
    got = mean_of(list(arrays), weights)
    # Five products and sums and one quotient, each rounded to 2**-53: a few times 1e-16.
    np.testing.assert_allclose(got, np.average(arrays, axis=0, weights=weights), rtol=0, atol=2e-15)
    assert got.shape == shape


def test_float32_tensors_are_summed_in_float64() -> None:
    arrays = [RANDOM.normal(size=1000).astype(np.float32) for _ in range(500)]
    weights = [float(w) for w in RANDOM.integers(1, 4096, 500)]
    exact = np.average(np.array(arrays, np.float64), axis=0, weights=weights)
    got = weighted_mean(updates_of(list(arrays), weights))["w"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, exact.astype(np.float32))


def test_long_weights_shorten_the_products_of_float32_tensors_far_beyond_its_digits() -> None:
    arrays = [RANDOM.normal(size=1000).astype(np.float32) for _ in range(500)]
    weights = [float(w) for w in RANDOM.uniform(0.1, 1e6, 500)]
    exact = np.average(np.array(arrays, np.float64), axis=0, weights=weights)
    size = np.average(np.abs(np.array(arrays, np.float64)), axis=0, weights=weights)
    got = weighted_mean(updates_of(list(arrays), weights))["w"]
    # Each product is off by 2**-37 of itself at most; then the mean is rounded to float32, 2**-24.
    assert (np.abs(got - exact) <= size * 2.0**-37 + np.abs(exact) * 2.0**-24).all()


def test_float16_tensors_whose_sum_float16_cannot_hold_are_averaged() -> None:
    got = weighted_mean(updates_of([np.full(3, 60_000, np.float16)] * 9, [1000.0] * 9))["w"]
    np.testing.assert_array_equal(got, np.full(3, 60_000, np.float16))


@pytest.mark.parametrize("weights", ["counts", "any"])
@pytest.mark.parametrize("code", ["f2", "f4", "f8", "c8", "c16", "i1", "i8", "?"])
def test_the_order_of_arrival_does_not_change_a_bit(code: str, weights: str) -> None:
    arrays = [
        (RANDOM.normal(size=5000) * 10.0 ** (number % 4)).astype(code) for number in range(20)
    ]
    chosen = RANDOM.integers(1, 1000, 20) if weights == "counts" else RANDOM.uniform(0, 1e3, 20)
    replies = updates_of(list(arrays), chosen.tolist())
    means = [weighted_mean(replies), weighted_mean(replies[::-1])]
    for seed in range(5):
        shuffled = list(replies)
        Random(seed).shuffle(shuffled)
        means.append(weighted_mean(shuffled))
    assert len({mean["w"].tobytes() for mean in means}) == 1


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.1, 1e-9, 1234567.89])
@pytest.mark.parametrize("code", ["f2", "f4", "c8", "i4", "u1", "?", "i8"])
def test_the_mean_of_one_update_is_exactly_that_update(code: str, weight: float) -> None:
    only = (RANDOM.normal(size=(30, 20)) * 100).astype(np.uint8).astype(code)
    got = weighted_mean(updates_of([only], [weight]))["w"]
    assert got.dtype == only.dtype
    np.testing.assert_array_equal(got, only)


def test_complex_tensors_keep_their_imaginary_part() -> None:
    arrays = [np.array([1 + 2j, 3 - 1j], np.complex64), np.array([3 + 4j, 1 + 1j], np.complex64)]
    got = weighted_mean(updates_of(list(arrays), [1.0, 3.0]))["w"]
    np.testing.assert_array_equal(got, np.array([2.5 + 3.5j, 1.5 + 0.5j], np.complex64))


def test_integer_tensors_are_rounded_to_the_nearest() -> None:
    arrays: list[Tensor] = [np.array([1, -1, 10], np.int64), np.array([2, -2, 10], np.int64)]
    got = weighted_mean(updates_of(arrays, [1.0, 2.0]))["w"]  # 5/3, -5/3, 10
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [2, -2, 10])


def test_arrays_in_fortran_order_are_averaged_by_place() -> None:
    one = np.asfortranarray(RANDOM.normal(size=(30, 50)))
    two = RANDOM.normal(size=(50, 30)).T
    np.testing.assert_allclose(mean_of([one, two], [1.0, 1.0]), (one + two) / 2, rtol=1e-15)


def test_failures_do_not_count() -> None:
    good = updates_of([np.array([2.0]), np.array([4.0])], [1.0, 1.0])
    replies = [SiteFailure("a", "gone"), good[0], SiteFailure("b", "late"), good[1]]
    np.testing.assert_array_equal(weighted_mean(replies)["w"], [3.0])


def test_updates_without_tensors_have_a_mean_without_tensors() -> None:
    assert weighted_mean([Update(weight=2), Update(weight=3)]) == {}


@pytest.mark.parametrize("replies", [[], [SiteFailure("a", "gone")]])
def test_there_is_no_mean_of_nothing(replies: list[Reply]) -> None:
    with pytest.raises(UpdateRejected, match="no site sent an update"):
        weighted_mean(replies)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_above_zero_names_the_site(weight: float) -> None:
    with pytest.raises(UpdateRejected, match=f"'site-1' sent the weight {weight}"):
        weighted_mean(updates_of([np.zeros(2)], [weight]))


def test_the_largest_integers_have_themselves_as_mean_but_for_what_float64_cannot_hold() -> None:
    for code in "i8", "u8", "i4", "u1":
        limits = np.iinfo(code)
        ends = np.array([limits.min, limits.max], code)
        got = weighted_mean(updates_of([ends, ends], [1.0, 3.0]))["w"]
        assert got[0] == limits.min
        assert 0 <= limits.max - int(got[1]) < 2**11


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("order", [1, -1])
def test_a_tensor_that_is_not_finite_names_its_site(odd: float, order: int) -> None:
    replies = updates_of([np.ones(3, np.float32), np.array([1, odd, 1], np.float32)], [1.0, 2.0])
    with pytest.raises(UpdateRejected, match="site 'site-2': tensor 'w' holds a NaN, an infinity"):
        weighted_mean(replies[::order])


def test_weights_whose_sum_is_too_large_are_refused() -> None:
    with pytest.raises(UpdateRejected, match="sum of the sites' weights"):
        weighted_mean(updates_of([np.zeros(2)] * 2, [1.5e308, 1.5e308]))


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"w": np.zeros(3)}, r"'odd': tensor 'w' is float64 \(3,\), other sites sent .*\(2,\)"),
        ({"w": np.zeros(2, np.float32)}, r"'w' is float32 \(2,\), other sites sent float64"),
        ({"v": np.zeros(2)}, r"'odd' disagrees with the other sites on the tensors \['v', 'w'\]"),
        ({}, r"on the tensors \['w'\]"),
        ({"w": np.zeros(2), "more": np.zeros(1)}, r"on the tensors \['more'\]"),
    ],
)
def test_a_site_that_disagrees_with_the_others_is_named(odd: dict[str, Tensor], says: str) -> None:
    with pytest.raises(UpdateRejected, match=says):
        weighted_mean([Update({"w": np.zeros(2)}, site="first"), Update(odd, site="odd")])


def test_each_update_is_let_go_before_the_next_is_asked_for() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def arriving() -> Iterator[Reply]:
        for _ in range(4):
            assert all(update() is None for update in alive)
            array: Tensor = np.ones(1000, np.float32)
            alive.append(weakref.ref(array))
            update = Update({"w": array})
            del array
            yield update
            del update

    weighted_mean(arriving())
    assert len(alive) == 4


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    def peak(count: int) -> int:
        def arriving() -> Iterator[Reply]:
            for _ in range(count):
                yield Update({"w": np.ones(500_000, np.float32)})

        tracemalloc.start()
        weighted_mean(arriving())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(3), peak(30)
    assert many < few + 100_000  # bytes; one more update would be 2,000,000
