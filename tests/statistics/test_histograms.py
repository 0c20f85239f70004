"""Histograms on shared edges, against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_federated.statistics.histograms import (
    counts,
    counts_with_outer,
    nested_edges,
    shown_edges,
    step_for,
    steps,
)


@given(
    st.lists(st.floats(-1e9, 1e9), max_size=50),
    st.floats(-1e9, 1e9),
    st.floats(0, 1e9),
    st.integers(1, 50),
)
def test_counts_equal_numpys(values: list[float], low: float, width: float, bins: int) -> None:
    edges = shown_edges(low, low + width, bins)
    array = np.array([*values, *edges])  # values on the edges, too
    found = counts(array, edges)
    if width > 1e-3:  # narrower ones are widened
        expected, their_edges = np.histogram(array, bins, range=(low, low + width))
        np.testing.assert_array_equal(edges, their_edges)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, np.histogram(array, edges)[0])


@pytest.mark.parametrize("offset", [0.0, 1e9, -3e15])
def test_nested_bins_add_up_to_those_that_are_shown(offset: float) -> None:
    generator = np.random.default_rng(2)
    values = offset + generator.normal(size=10_000) * max(1.0, abs(offset) * 1e-9)
    shown = shown_edges(float(values.min()), float(values.max()), 20)
    fine = nested_edges(shown, 16)
    np.testing.assert_array_equal(fine[::16], shown)
    found = counts(values, fine)
    np.testing.assert_array_equal(found, np.histogram(values, fine)[0])
    np.testing.assert_array_equal(found.reshape(-1, 16).sum(axis=1), np.histogram(values, shown)[0])


def test_uneven_edges_are_counted_between_too() -> None:
    values = np.random.default_rng(3).exponential(size=1000)
    edges = np.array([0.0, 0.1, 0.5, 2.0, 100.0])
    np.testing.assert_array_equal(counts(values, edges), np.histogram(values, edges)[0])


def test_what_is_outside_of_the_range_is_in_the_outer_bins() -> None:
    edges = shown_edges(0, 1, 2)
    np.testing.assert_array_equal(
        counts_with_outer(np.array([-5.0, 0.0, 0.5, 1.0, 1.1, 2.0]), edges), [1, 1, 2, 2]
    )


def test_a_site_with_few_rows_answers_on_fewer_edges_that_are_still_nested() -> None:
    assert steps(20, 16) == [1, 2, 4, 8, 16, 32, 64, 80, 160, 320]
    assert step_for(20, 16, 1000) == 1
    assert step_for(20, 16, 99) == 4
    assert step_for(20, 16, 12) == 32
    assert step_for(20, 16, 1) == 320
    assert step_for(20, 16, 0) is None
