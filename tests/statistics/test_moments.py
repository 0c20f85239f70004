"""Moments by chunk and by site, against pandas and numpy on all rows together."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefect_federated.statistics import correlation
from prefect_federated.statistics.moments import Moments, chunk_of, merged

Values = NDArray[np.float64]
EXACT = 1e-12  # relative


def moments_of(parts: list[Values]) -> Moments:
    together = Moments.none(parts[0].shape[1])
    for part in parts:
        together = merged(together, chunk_of(np.ascontiguousarray(part.T)).moments)
    return together


def products_of(parts: list[Values]) -> correlation.Products:
    together = correlation.Products.none(parts[0].shape[1])
    for part in parts:
        of_part = correlation.products_of(chunk_of(np.ascontiguousarray(part.T)))
        together = correlation.merged(together, of_part)
    return together


def table(offset: float, rows: int = 2000, missing: float = 0.2) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    common = generator.normal(size=rows)
    columns = {f"c{n}": offset + common * n / 3 + generator.normal(size=rows) for n in range(5)}
    frame = pd.DataFrame(columns)
    return frame.mask(generator.random(frame.shape) < missing)


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e9])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_means_and_variances_equal_pandas_on_the_pooled_rows(offset: float, missing: float) -> None:
    frame = table(offset, missing=missing)
    found = moments_of(np.array_split(frame.to_numpy(), [3, 700, 700, 1500]))
    np.testing.assert_array_equal(found.count, frame.count())
    np.testing.assert_array_equal(found.missing, frame.isna().sum())
    np.testing.assert_array_equal(found.min, frame.min())
    np.testing.assert_array_equal(found.max, frame.max())
    if offset:  # around 0, means and sums cancel: relative to what they are sums of, not to 0
        np.testing.assert_allclose(found.mean, frame.mean(), rtol=EXACT)
        np.testing.assert_allclose(found.sum, frame.sum(), rtol=EXACT)
    else:
        np.testing.assert_allclose(found.mean, frame.mean(), atol=EXACT)
    np.testing.assert_allclose(found.variance, frame.var(), rtol=EXACT)


@pytest.mark.parametrize("offset", [0.0, 1e9])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_correlations_equal_pandas_on_the_pooled_rows(offset: float, missing: float) -> None:
    frame = table(offset, missing=missing)
    found = correlation.correlations(
        products_of(np.array_split(frame.to_numpy(), [3, 700, 700, 1500]))
    )
    # Of values around 1e9 pandas' own running sums lose half of the digits; less 1e9, they do not.
    np.testing.assert_allclose(found, (frame - offset).corr(), rtol=0, atol=EXACT)


def test_a_column_that_does_not_vary_has_no_correlation() -> None:
    frame = table(0.0).assign(constant=0.1, empty=np.nan)
    found = correlation.correlations(products_of(np.array_split(frame.to_numpy(), 7)))
    assert np.isnan(found[5:]).all()
    assert np.isnan(found[:, 5:]).all()
    np.testing.assert_allclose(found[:5, :5], frame.iloc[:, :5].corr(), rtol=0, atol=EXACT)


def test_infinite_values_are_counted_and_left_out() -> None:
    values = np.array([[1.0, np.inf, np.nan, 3.0, -np.inf]])
    found = chunk_of(values).moments
    assert (found.count[0], found.infinite[0], found.missing[0]) == (2, 2, 1)
    assert (found.mean[0], found.min[0], found.max[0], found.m2[0]) == (2, 1, 3, 2)


def test_of_no_values_there_is_no_mean() -> None:
    found = moments_of([np.full((3, 1), np.nan), np.empty((0, 1))])
    assert np.isnan(found.mean).all()
    assert np.isnan(found.variance).all()
    assert found.missing[0] == 3


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), min_size=1, max_size=6))
def test_however_rows_are_divided_the_moments_are_the_same(parts: list[list[float]]) -> None:
    whole = np.array([value for part in parts for value in part])[:, None]
    found = moments_of([np.array(part, float)[:, None] for part in parts])
    expected = moments_of([whole])
    scale = float(np.abs(whole).max(initial=0)) or 1.0
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=EXACT * scale)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=0, atol=EXACT * scale**2 * len(whole))
