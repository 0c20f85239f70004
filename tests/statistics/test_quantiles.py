"""Quantiles from counts: the true one of all values together lies within the stated bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefect_federated.statistics.histograms import (
    OUTER,
    counts_with_outer,
    nested_edges,
    shown_edges,
    with_outer,
)
from prefect_federated.statistics.quantiles import (
    Cumulative,
    Near,
    narrowed,
    places_to_refine,
    quantiles,
    together,
)
from prefect_federated.statistics.schema import Histogram, Summary

WANTED = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]
Values = NDArray[np.float64]


def counted(values: Values, edges: Values, minimum: int = 0) -> Cumulative | None:
    """Counts as a site does; bins of fewer than `minimum` values are withheld."""
    counts = counts_with_outer(values, edges)
    told = [float(c) if c >= minimum or c == 0 else None for c in counts]
    histogram = Histogram(edges=with_outer(edges).tolist(), counts=told)
    return Cumulative.of(histogram, float(len(values)))


def check(known: Cumulative | None, pooled: Values) -> float:
    """Checks that each true quantile lies within its bound; returns the widest bound."""
    widest = 0.0
    for found in quantiles(known, WANTED):
        true = float(np.quantile(pooled, found.q))
        scale = 1e-12 * max(1.0, abs(true))
        lower = -np.inf if found.lower is None else found.lower
        upper = np.inf if found.upper is None else found.upper
        assert lower - scale <= true <= upper + scale, found
        assert found.value is not None
        assert lower <= found.value <= upper
        widest = max(widest, upper - lower)
    return widest


@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), min_size=1, max_size=4
    ),
    st.integers(0, 4),
    st.integers(1, 9),
)
def test_the_true_quantile_lies_within_the_bound_whatever_the_sites_withhold(
    sites: list[list[float]], minimum: int, bins: int
) -> None:
    arrays = [np.array(values) for values in sites]
    parts = [
        counted(values, shown_edges(-50, 60, bins + number), minimum)  # each on its own edges
        for number, values in enumerate(arrays)
    ]
    check(together([part for part in parts if part is not None]), np.concatenate(arrays))


@pytest.mark.parametrize("shape", ["normal", "whole numbers", "heavy tail", "one value"])
def test_refinement_brings_the_bound_below_the_tolerance(shape: str) -> None:
    generator = np.random.default_rng(5)
    pooled = {
        "normal": generator.normal(50, 10, 4000),
        "whole numbers": generator.integers(20, 90, 4000).astype(float),
        "heavy tail": np.exp(generator.normal(0, 4, 4000)),
        "one value": np.full(4000, 7.25),
    }[shape]
    sites = np.split(pooled, [500, 1100, 3000])
    low, high = np.quantile(pooled, [0.02, 0.9])  # some values are outside of the range
    edges = nested_edges(shown_edges(float(low), float(high), 10), 4)
    known = [counted(values, edges) for values in sites]
    parts = [part for part in known if part is not None]
    tolerance = 1e-3 * float(pooled.std() or 1.0)
    for _ in range(12):
        asked = np.array(places_to_refine(together(parts), WANTED, Near(tolerance), 16))
        if not len(asked):
            break
        more = [counted(values, asked) for values in sites]
        parts = [narrowed(a, b) for a, b in zip(parts, more, strict=True) if b is not None]
    assert check(together(parts), pooled) <= tolerance * (1 + 1e-9)


def test_bounds_with_few_values_between_them_are_near_enough() -> None:
    known = counted(np.arange(1000.0), shown_edges(0, 1000, 40))
    assert places_to_refine(known, [0.25, 0.5], Near(1e-6, share=0.01), 4)
    assert not places_to_refine(known, [0.25, 0.5], Near(1e-6, share=0.03), 4)


def test_noise_in_the_counts_leaves_a_value_without_a_bound() -> None:
    histogram = Histogram(edges=[0.0, 1.0, 2.0], counts=[10.3, 9.8])
    (median,) = quantiles(Cumulative.of(histogram, None, is_exact=False), [0.5])
    assert median.value == pytest.approx(0.97, abs=0.1)
    assert (median.lower, median.upper) == (None, None)
    assert not places_to_refine(Cumulative.of(histogram, None, is_exact=False), [0.5], Near(0), 4)


def test_of_no_values_nothing_is_known() -> None:
    empty = Histogram(edges=[0.0, 1.0], counts=[0])
    assert Cumulative.of(empty, 0.0) is None
    assert quantiles(None, [0.5])[0].value is None
    assert together([]) is None
    unknown = Histogram(edges=[-OUTER, 0.0, OUTER], counts=[None, 3])
    assert Cumulative.of(unknown, None) is None


def ends(values: Values) -> Cumulative:
    """Returns what minimum and maximum tell."""
    low, high = float(values.min()), float(values.max())
    told = Cumulative.between(Summary(count=len(values), min=low, max=high))
    assert told is not None
    return told


def test_of_values_that_are_all_the_same_each_quantile_is_that_value() -> None:
    counts = counted(np.zeros(92), shown_edges(-13.75, 603, 40))
    assert counts is not None
    known = narrowed(counts, ends(np.zeros(92)))
    for found in quantiles(known, WANTED):
        assert (found.value, found.lower, found.upper) == (0.0, 0.0, 0.0)
    assert places_to_refine(known, WANTED, Near(0.0), 4) == []


def test_a_site_whose_values_are_all_the_same_brings_the_bounds_of_all_sites_closer() -> None:
    swiss, others = np.zeros(92), np.random.default_rng(1).normal(230, 50, 500)
    edges = shown_edges(-13.75, 603, 40)
    parts = [part for each in (swiss, others) if (part := counted(each, edges)) is not None]
    both = np.concatenate([swiss, others])
    before, after = (
        quantiles(known, [0.05])[0]
        for known in (together(parts), together([narrowed(parts[0], ends(swiss)), parts[1]]))
    )
    assert (after.lower, after.value, after.upper) == (0.0, 0.0, 0.0)
    assert before.lower is not None
    assert before.lower < 0
    check(together([narrowed(parts[0], ends(swiss)), parts[1]]), both)


@given(
    st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), min_size=1, max_size=4
    ),
    st.integers(0, 4),
    st.integers(1, 9),
)
def test_the_true_quantile_lies_within_the_bound_where_many_values_are_on_the_edges(
    sites: list[list[float]], minimum: int, bins: int
) -> None:
    arrays = [np.array(values) for values in sites]
    parts = []
    for number, values in enumerate(arrays):
        counts = counted(values, shown_edges(-3, 3, bins + number), minimum)
        parts.append(ends(values) if counts is None else narrowed(counts, ends(values)))
    check(together(parts), np.concatenate(arrays))


def test_ends_with_noise_in_the_numbers_tell_nothing() -> None:
    assert Cumulative.between(Summary(count=9, min=0, max=0, noise="Laplace, epsilon 1")) is None
    assert Cumulative.between(Summary(count=9, min=1, max=0)) is None
