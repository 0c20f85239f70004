"""PSI and Kolmogorov-Smirnov on counts: closed forms, and scipy on the samples themselves."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, ks_2samp, kstwobign

from prefect_federated.statistics.distances import (
    added,
    binned,
    counts_of,
    ks,
    ks_by_chance,
    merged,
    of_categories,
    psi,
    psi_by_chance,
)
from prefect_federated.statistics.schema import Histogram


def histogram(values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, edges = np.histogram(values, edges)
    return Histogram(edges=edges.tolist(), counts=counts.astype(float).tolist())


def test_psi_is_the_closed_form_on_shares_with_half_a_value_more_in_each_bin() -> None:
    before, now = np.array([50.0, 50.0]), np.array([70.0, 30.0])
    p, q = (50.5 / 101, 50.5 / 101), (70.5 / 101, 30.5 / 101)
    expected = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert psi(before, now) == pytest.approx(expected, rel=1e-12)
    # Without the half, and with so many values that it does not matter: 0.2 ln(1.4) + 0.2 ln(5/3).
    large = psi(1e9 * before, 1e9 * now)
    assert large == pytest.approx(0.2 * math.log(1.4) + 0.2 * math.log(5 / 3), rel=1e-6)


def test_psi_of_the_same_shares_is_nothing_and_of_an_emptied_bin_is_finite() -> None:
    assert psi(np.array([10.0, 30]), np.array([10.0, 30])) == 0
    assert 1 < psi(np.array([50.0, 50]), np.array([100.0, 0])) < math.inf


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 2.0])
def test_ks_on_bins_is_scipys_on_the_values_within_the_fullest_bin(shift: float) -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=4000), random.normal(shift, size=3000)
    edges = np.linspace(-5, 8, 400)
    one, two = histogram(first, edges), histogram(second, edges)
    found = ks(counts_of(one), counts_of(two))
    exact = ks_2samp(first, second).statistic
    resolution = max(max(counts_of(h)) / sum(counts_of(h)) for h in (one, two))
    assert found <= exact + 1e-12
    assert found >= exact - resolution


def test_ks_is_exact_where_each_value_has_a_bin_of_its_own() -> None:
    random = np.random.default_rng(2)
    first, second = random.integers(0, 6, 500), random.integers(1, 7, 400)
    edges = np.arange(-0.5, 7.5)
    found = ks(counts_of(histogram(first, edges)), counts_of(histogram(second, edges)))
    assert found == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)


def test_histograms_on_the_same_edges_are_not_moved() -> None:
    one = Histogram(edges=[0, 1, 2], counts=[3, 4])
    both = binned(one, Histogram(edges=[0, 1, 2], counts=[5, 6]), (7, 11))
    assert not both.was_moved
    assert both.now.tolist() == [5, 6]


def test_where_edges_are_shared_what_is_moved_is_exact() -> None:
    before = Histogram(edges=[0, 2, 4], counts=[10, 10])
    now = Histogram(edges=[0, 1, 2, 3, 4], counts=[1, 2, 3, 4])
    both = binned(before, now, (20, 10))
    assert both.was_moved
    assert both.now.tolist() == [0, 3, 7, 0]  # a bin beyond either end


def test_values_at_one_point_do_not_drift_when_only_the_edges_move() -> None:
    before = Histogram(edges=[0, 15, 30], counts=[92, 0])
    now = Histogram(edges=[-3, 12, 27], counts=[92, 0])
    both = binned(before, now, (92, 92))
    assert ks(both.before, both.now) == 0
    assert psi(*merged(both.before, both.now)) == 0


def test_moved_counts_never_differ_more_than_the_values_do() -> None:
    random = np.random.default_rng(3)
    for shift in (0.0, 0.3, 1.0, 3.0):
        first, second = random.normal(size=2000), random.normal(shift, size=2000)
        one = histogram(first, np.linspace(first.min(), first.max(), 21))
        two = histogram(second, np.linspace(second.min(), second.max(), 16))
        both = binned(one, two, (2000, 2000))
        assert both.now.sum() == pytest.approx(2000)
        assert (both.now >= 0).all()
        found, exact = ks(both.before, both.now), ks_2samp(first, second).statistic
        assert found <= exact + 1e-12
        assert found >= exact - 0.25  # of what may hide in a bin


def test_bins_are_merged_to_tenths_and_new_values_keep_a_bin_of_their_own() -> None:
    before = np.array([*np.full(100, 1.0), 0.0])
    now = np.array([*np.full(100, 0.5), 50.0])
    first, second = merged(before, now)
    assert first.sum() == 100
    assert second.sum() == 100
    assert 8 <= len(first) <= 10
    assert first[-1] <= 10  # where there was little, there is half of all now
    assert second[-1] >= 50


def test_withheld_bins_share_what_is_left_over_and_noise_below_nothing_is_nothing() -> None:
    told = Histogram(edges=[0, 1, 2, 3, 4], counts=[6, None, None, -2])
    assert counts_of(told, 10).tolist() == [6, 2, 2, 0]
    assert counts_of(told).tolist() == [6, 0, 0, 0]


def test_categories_of_either_count() -> None:
    names, before, now = of_categories({"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert names == ["a", "b", "c"]
    assert before.tolist() == [1, 2, 0]
    assert now.tolist() == [0, 3, 4]


def test_chance_is_that_of_kolmogorov_and_of_chi_squared() -> None:
    n, m = 200.0, 300.0
    scale = math.sqrt(1 / n + 1 / m)
    assert ks_by_chance(n, m) == pytest.approx(kstwobign.isf(0.01) * scale, rel=1e-4)
    expected = chi2.isf(0.01, 9) * (1 / n + 1 / m)
    assert psi_by_chance(10, n, m) == pytest.approx(expected, rel=0.01)  # Wilson and Hilferty


def test_chance_alone_rarely_makes_more() -> None:
    random = np.random.default_rng(4)
    shares = np.full(10, 0.1)
    beyond = 0
    for _ in range(1000):
        before, now = random.multinomial(200, shares), random.multinomial(300, shares)
        beyond += psi(before.astype(float), now.astype(float)) > psi_by_chance(10, 200, 300)
    assert beyond <= 25  # of 1,000; 10 are expected


def test_sums_of_histograms_are_withheld_where_one_is() -> None:
    one, two = (Histogram(edges=[0, 1, 2], counts=[1, c]) for c in (2, None))
    assert added([one, one]).counts == [2, 4]
    assert added([one, two]).counts == [2, None]
