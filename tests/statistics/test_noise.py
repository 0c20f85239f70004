"""Noise follows its distribution, fits the sensitivity, and comes from the system."""

import math
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.statistics import protection
from prefect_federated.statistics.noise import (
    STEPS,
    Mechanism,
    discrete_gaussian,
    discrete_laplace,
    gaussian_deviation,
)
from prefect_federated.statistics.noised import noised_summary
from prefect_federated.statistics.schema import Summary
from tests.statistics.asking import SmallSite, summary_of

DRAWS = 8_000


class Largest(Mechanism):
    """No noise, but what it was asked for: numbers and their sensitivities."""

    def __init__(self) -> None:
        super().__init__("laplace", 1.0, 1e-6, 1, random.Random(0))
        self.counts: list[float] = []
        self.sums: list[tuple[float, float]] = []

    def count(self, exact: float) -> float:
        self.counts.append(exact)
        return exact

    def sum(self, exact: float, sensitivity: float) -> float:
        self.sums.append((exact, sensitivity))
        return exact


def chi_square(drawn: list[int], weight: dict[int, float]) -> tuple[float, int]:
    """Returns Pearson's statistic over values that are expected 20 times or more, and how many."""
    total, found = sum(weight.values()), Counter(drawn)
    expected = {value: DRAWS * share / total for value, share in weight.items()}
    kept = {value: count for value, count in expected.items() if count >= 20}
    return sum((found[v] - count) ** 2 / count for v, count in kept.items()), len(kept)


@pytest.mark.parametrize("scale", [Fraction(1, 3), Fraction(2), Fraction(17, 5), Fraction(40)])
def test_laplace_noise_follows_its_distribution(scale: Fraction) -> None:
    source = random.Random(1)
    drawn = [discrete_laplace(scale, source) for _ in range(DRAWS)]
    weight = {x: math.exp(-abs(x) / float(scale)) for x in range(-2000, 2001)}
    statistic, values = chi_square(drawn, weight)
    assert statistic < values + 6 * math.sqrt(2 * values)  # six deviations of chi-square


@pytest.mark.parametrize("deviation", [Fraction(1, 2), Fraction(3), Fraction(31, 2)])
def test_gaussian_noise_follows_its_distribution(deviation: Fraction) -> None:
    source = random.Random(2)
    drawn = [discrete_gaussian(deviation, source) for _ in range(DRAWS)]
    weight = {x: math.exp(-(x**2) / 2 / float(deviation) ** 2) for x in range(-400, 401)}
    statistic, values = chi_square(drawn, weight)
    assert statistic < values + 6 * math.sqrt(2 * values)


def test_noise_of_sums_has_the_scale_of_their_sensitivity() -> None:
    mechanism = Mechanism("laplace", 0.5, 1e-6, 4, random.Random(3))
    drawn = np.array([mechanism.sum(1000.0, 30.0) for _ in range(DRAWS)]) - 1000
    # Laplace noise of scale b has a mean size of b; that of 8,000 draws is off by b / 89.
    assert abs(np.abs(drawn).mean() / (30 * 4 / 0.5) - 1) < 0.07
    steps = drawn / (30.0 / STEPS)
    assert len({round(step) for step in steps}) > DRAWS / 2


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1, 4, 50, 100])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_gaussian_deviation_is_the_least_that_is_private(epsilon: float, delta: float) -> None:
    deviation = gaussian_deviation(epsilon, delta)

    def beyond(sigma: float) -> float:
        # By the definition: what is likelier with the row than e^epsilon times without it.
        z = np.linspace(-40, 40, 400_001)
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        loss = z / sigma + 1 / (2 * sigma**2)
        excess = np.where(loss > epsilon, 1 - np.exp(np.minimum(epsilon - loss, 0)), 0)
        return float((density * excess).sum() * (z[1] - z[0]))

    assert beyond(deviation) == pytest.approx(delta, rel=1e-2)
    assert beyond(deviation * 0.95) > delta


def test_a_name_that_one_row_has_passes_with_delta_at_most() -> None:
    for kind in ("laplace", "gaussian"):
        mechanism = Mechanism(kind, 1.0, 0.05, 1, random.Random(4))
        least = mechanism.threshold(names=1)
        passed = sum(mechanism.count(1.0) >= least for _ in range(4000))
        # 100 are allowed of 4,000: half of delta; by chance 10 more or fewer, six times.
        assert passed <= 100 + 6 * 10


def test_one_row_moves_sums_by_no_more_than_their_sensitivity() -> None:
    values = np.random.default_rng(5).uniform(20, 90, 200)
    policy = PrivacyPolicy(small_cell=0)
    for extra in (18.0, 54.0, 110.0):
        asked = []
        for rows in (values, np.append(values, extra)):
            mechanism = Largest()
            exact = summary_of(pd.Series(rows), [18, 50, 110])
            noised_summary(exact, "numeric", (18.0, 110.0), policy, mechanism, 0)
            asked.append(mechanism)
        without, with_row = asked
        pairs = zip(without.sums, with_row.sums, strict=True)
        assert all(abs(a - b) <= size * (1 + 1e-9) for (a, size), (b, _) in pairs)
        assert sum(abs(a - b) for a, b in zip(without.counts, with_row.counts, strict=True)) == 2
        # One of count, missing and infinite, and one bin: each a row of counts.


def test_without_noise_the_noised_formulas_are_exact() -> None:
    values = np.random.default_rng(6).uniform(20, 90, 200)
    exact = summary_of(pd.Series(values), None)
    told = noised_summary(exact, "numeric", (18.0, 110.0), PrivacyPolicy(), Largest(), 0)
    for name in ("count", "sum", "mean", "variance", "std"):
        assert getattr(told, name) == pytest.approx(getattr(exact, name), rel=1e-9)
    assert (told.min, told.max) == (18.0, 110.0)


def test_columns_without_bounds_have_no_sums_with_noise(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": np.arange(500.0) % 90, "other": np.arange(500.0)})
    policy = PrivacyPolicy(noise=Noise(epsilon=5), bounds={"age": (0, 110)})
    split = SmallSite(tmp_path, frame, policy).split()
    assert split.columns["age"].summary.mean is not None
    summary = split.columns["other"].summary
    assert (summary.mean, summary.min) == (None, None)
    assert summary.withheld[0].reason.endswith("of columns with `bounds` only")
    assert split.co_moments is None
    assert any("not released with noise" in line.reason for line in split.withheld)


def test_values_beyond_the_bounds_withhold_what_rests_on_them() -> None:
    exact = summary_of(pd.Series(np.arange(100.0)), None)
    told = noised_summary(exact, "numeric", (0.0, 50.0), PrivacyPolicy(), Largest(), 0)
    assert told.mean is None
    assert "outside of the bounds" in told.withheld[0].reason


def test_noised_numbers_are_near_the_true_ones_with_a_large_epsilon(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": np.random.default_rng(7).normal(50, 10, 20_000).clip(0, 110)})
    policy = PrivacyPolicy(noise=Noise(epsilon=10), bounds={"age": (0, 110)})
    summary = SmallSite(tmp_path, frame, policy).column("age", range(0, 111, 10))
    assert summary.mean == pytest.approx(50, abs=0.5)
    assert summary.std == pytest.approx(10, abs=0.5)
    assert summary.histogram is not None
    assert sum(count or 0 for count in summary.histogram.counts) == pytest.approx(20_000, rel=0.01)
    assert summary.noise == (
        "Laplace, epsilon 10 for 5 numbers together; a count is off by 0.5 or so"
    )


def test_randomness_is_the_systems_and_no_seed_decides_it(tmp_path: Path) -> None:
    assert isinstance(protection._SYSTEM, random.SystemRandom)
    frame = pd.DataFrame({"age": np.arange(500.0) % 90})
    policy = PrivacyPolicy(noise=Noise(epsilon=1), bounds={"age": (0, 110)})
    told = set()
    for place in range(6):
        random.seed(0)
        np.random.seed(0)
        told.add(SmallSite(tmp_path / str(place), frame, policy).column("age").sum)
    assert len(told) == 6


def test_no_noised_category_is_named_below_the_threshold(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ward": ["a"] * 3000 + ["b"] * 2000 + ["rare"] * 3})
    policy = PrivacyPolicy(noise=Noise(epsilon=1))
    summary = SmallSite(tmp_path, frame, policy).column("ward")
    assert summary.categories is not None
    assert set(summary.categories) == {"a", "b"}


def test_a_refinement_with_noise_costs_nothing_and_gives_nothing(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": np.arange(500.0) % 90})
    policy = PrivacyPolicy(noise=Noise(epsilon=1, budget_epsilon=1), bounds={"age": (0, 110)})
    site = SmallSite(tmp_path, frame, policy)
    refined = site.split({"age": [0, 1, 2]}, kind="refine")
    assert refined.columns["age"].summary == Summary(
        withheld=refined.columns["age"].summary.withheld
    )
    assert site.column("age").count is not None
