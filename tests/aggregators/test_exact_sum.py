"""Sums that do not depend on the order, against rational numbers."""

import math
import tracemalloc
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefect_federated.aggregators import exact_sum
from prefect_federated.aggregators.exact_sum import SHORT_BITS, ExactSum
from prefect_federated.messages import Tensor

RANDOM = np.random.default_rng(3)
Terms = list[tuple[Tensor, float]]

# From 2**-1000 to 2**960: far more than two float64 together can span.
FLOATS64 = st.builds(math.ldexp, st.integers(-(2**53), 2**53), st.integers(-1000, 900))
FLOATS32 = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = st.one_of(
    st.integers(1, 5000).map(float), st.floats(1e-3, 1e6), st.sampled_from([1.0, 2**-40, 3e9])
)


@st.composite
def terms_of(draw: st.DrawFn, numbers: st.SearchStrategy[float], dtype: str) -> Terms:
    size = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=1, max_size=12))
    return [(np.array(row, dtype), draw(WEIGHTS)) for row in rows]


def total_of(terms: Terms, *, is_short: bool = False) -> NDArray[np.float64]:
    total = ExactSum(terms[0][0].size, is_short=is_short)
    for array, weight in terms:
        total.add(array, weight)
    found = np.empty(total.size)
    for start, block in total.blocks():
        found[start : start + block.size] = block
    return found


def rational(terms: Terms, *, is_short: bool = False) -> list[float]:
    """Sums the products as rational numbers, and rounds once."""
    columns = zip(*((array.astype("f8") * weight).tolist() for array, weight in terms), strict=True)
    rounded = shortened if is_short else Fraction
    return [float(sum(map(rounded, column), Fraction(0))) for column in columns]


def shortened(value: float) -> Fraction:
    """Rounds to `SHORT_BITS` bits, ties away from zero, as a rational number."""
    unit = Fraction(2) ** (math.frexp(value)[1] - SHORT_BITS)
    whole = math.floor(abs(Fraction(value)) / unit + Fraction(1, 2)) * unit
    return whole if value > 0 else -whole


def orders_of(terms: Terms, random: Random) -> list[Terms]:
    return [terms, terms[::-1], random.sample(terms, len(terms))]


@settings(deadline=None, max_examples=150)
@given(terms_of(FLOATS64, "f8"), st.randoms(use_true_random=False))
def test_a_sum_is_the_exact_one_rounded_once_in_any_order(terms: Terms, random: Random) -> None:
    expected = rational(terms)
    for order in orders_of(terms, random):
        assert total_of(order).tolist() == expected


@settings(deadline=None, max_examples=150)
@given(terms_of(FLOATS32, "f4"), st.randoms(use_true_random=False))
def test_a_sum_of_short_products_is_exact_in_any_order(terms: Terms, random: Random) -> None:
    expected = rational(terms, is_short=True)
    for order in orders_of(terms, random):
        assert total_of(order, is_short=True).tolist() == expected


def test_products_with_counts_up_to_4096_are_not_shortened() -> None:
    terms: Terms = [
        (RANDOM.normal(size=50).astype("f4"), float(count)) for count in (4095, 4096, 1, 77)
    ]
    assert total_of(terms, is_short=True).tolist() == rational(terms)


@pytest.mark.parametrize("spread", [0, 60, 300])
def test_sums_that_many_levels_hold_are_exact_in_any_order(
    spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK": 16, "_FEW": 0, "_PIECES": 3}.items():
        monkeypatch.setattr(exact_sum, name, value)
    exponents = RANDOM.integers(-spread, spread + 1, (40, 100))
    terms: Terms = [
        (np.ldexp(RANDOM.normal(size=100), row), 0.1 + place) for place, row in enumerate(exponents)
    ]
    expected = rational(terms)
    for order in orders_of(terms, Random(1)):
        assert total_of(order).tolist() == expected


def test_a_zero_has_the_same_sign_in_any_order() -> None:
    some = RANDOM.normal(size=300) / 3
    some[::3] = -0.0
    terms: Terms = [(some, 0.1), (some * 1e-9, 0.3), (-some, 0.1), (np.full(300, -0.0), 1.0)]
    terms += [(-some * 1e-9, 0.3)]
    signs = {np.signbit(total_of(order)).tobytes() for order in orders_of(terms, Random(2))}
    assert len(signs) == 1
    assert np.signbit(total_of([terms[0], terms[3]])[::3]).all()


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_is_refused(odd: float, place: int) -> None:
    arrays = [np.ones(40_000, "f4") for _ in range(3)]
    arrays[place][-1] = odd
    with pytest.raises(FloatingPointError):
        total_of([(array, 0.1) for array in arrays], is_short=True)


def test_a_sum_beyond_float64_is_refused() -> None:
    total = ExactSum(2, is_short=False)
    total.add(np.full(2, 1e308), 1.0)
    with pytest.raises(FloatingPointError):
        total.add(np.full(2, 1e308), 1.0)


@pytest.mark.parametrize("weight", [304.0, 54321.0, 0.7])
def test_a_sum_of_float32_arrays_takes_hardly_more_than_8_bytes_an_element(weight: float) -> None:
    size = 300_000
    tracemalloc.start()
    total = ExactSum(size, is_short=True)
    for number in range(40):
        total.add(RANDOM.standard_normal(size, np.float32), weight + number)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 8.5 * size
