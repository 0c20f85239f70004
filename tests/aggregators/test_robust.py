"""Median, trimmed mean, Krum and Multi-Krum, against NumPy and by poison."""

import tracemalloc
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from prefect_federated.aggregators import (
    AGGREGATORS,
    aggregator,
    coordinates,
    krum,
    median,
    multi_krum,
    trimmed_mean,
    weighted_mean,
)
from prefect_federated.aggregators.by_name import Aggregator
from prefect_federated.errors import ConfigurationError, NotEnoughSites, UpdateRejected
from prefect_federated.messages import Reply, SiteFailure, Tensor, Update

RANDOM = np.random.default_rng(17)
ROBUST = [name for name in AGGREGATORS if name != "weighted_mean"]


def updates_of(arrays: list[Tensor], name: str = "w") -> list[Reply]:
    return [
        Update({name: array}, weight=10.0 + place, site=f"site-{place}")
        for place, array in enumerate(arrays, start=1)
    ]


def around(truth: Tensor, sites: int, spread: float = 0.01) -> list[Tensor]:
    return [
        (truth + spread * RANDOM.normal(size=truth.shape)).astype(truth.dtype) for _ in range(sites)
    ]


@pytest.mark.parametrize(
    "poison",
    [
        lambda truth: -10 * truth,
        lambda truth: np.full_like(truth, 1e30),
        lambda truth: np.full_like(truth, np.finfo(truth.dtype).max),
        lambda truth: RANDOM.normal(size=truth.shape).astype(truth.dtype) * 100,
    ],
    ids=["against", "large", "largest", "noise"],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_of_five_sites_ruins_the_mean_and_no_robust_aggregator(
    poison: Callable[[Tensor], Tensor], place: int
) -> None:
    truth = RANDOM.normal(size=3000).astype(np.float32)
    arrays = around(truth, 4)
    arrays.insert(place, poison(truth))
    replies = updates_of(arrays)
    assert np.abs(weighted_mean(replies)["w"] - truth).max() > 1
    for name in ROBUST:
        found = aggregator(name)(replies)["w"]
        assert found.dtype == np.float32
        assert np.abs(found - truth).max() < 0.1, name  # ten times the honest sites' spread


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_what_is_not_finite_never_wins(name: str, odd: float) -> None:
    truth = RANDOM.normal(size=50)
    replies = updates_of([*around(truth, 4), np.full(50, odd)])
    assert np.abs(aggregator(name)(replies)["w"] - truth).max() < 0.1
    with pytest.raises(UpdateRejected, match="NaN, infinity"):
        aggregator(name)(updates_of([truth, truth, *[np.full(50, odd)] * 3]))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("shape", [(), (0,), (7, 3), (40_001,)])
def test_the_median_is_numpys(count: int, shape: tuple[int, ...]) -> None:
    arrays = [np.asarray(RANDOM.normal(size=shape)) for _ in range(count)]
    found = median(updates_of(list(arrays)))["w"]
    np.testing.assert_array_equal(found, np.median(arrays, axis=0))
    assert found.shape == shape


@pytest.mark.parametrize(("trim", "cut"), [(0.0, 0), (0.1, 1), (0.2, 2), (0.25, 3), (0.45, 5)])
def test_the_trimmed_mean_is_that_of_what_is_left(trim: float, cut: int) -> None:
    arrays = [RANDOM.normal(size=(50, 3)) for _ in range(11 if cut == 5 else 10)]
    left = np.sort(arrays, axis=0)[cut : len(arrays) - cut]
    found = trimmed_mean(updates_of(list(arrays)), trim=trim)["w"]
    np.testing.assert_allclose(found, left.mean(axis=0), rtol=0, atol=1e-15)


def test_a_share_that_is_a_whole_number_of_sites_leaves_out_no_more() -> None:
    arrays: list[Tensor] = [np.array([float(number)]) for number in range(100)]
    arrays[92] = np.array([1e6])  # with 7 left out at each end, this one and 6 of the largest
    found = trimmed_mean(updates_of(arrays), trim=0.07)["w"]  # 0.07 * 100 > 7 in float64
    assert found.tolist() == [np.mean(sorted(a[0] for a in arrays)[7:-7])]


def krum_by_hand(arrays: list[Tensor], byzantine: int) -> list[int]:
    scores = []
    for one in arrays:
        squares = sorted(float(((one - other) ** 2).sum()) for other in arrays if other is not one)
        scores.append(sum(squares[: len(arrays) - byzantine - 2]))
    return sorted(range(len(arrays)), key=scores.__getitem__)


@pytest.mark.parametrize(("sites", "byzantine"), [(3, 0), (5, 1), (9, 1), (9, 3)])
def test_krum_takes_the_update_with_the_lowest_score_as_it_is(sites: int, byzantine: int) -> None:
    arrays = [RANDOM.normal(size=40_000) for _ in range(sites)]
    order = krum_by_hand(list(arrays), byzantine)
    best = krum(updates_of(list(arrays)), byzantine=byzantine)["w"]
    np.testing.assert_array_equal(best, arrays[order[0]])
    for chosen in (1, 2, None):
        few = order[: sites - byzantine if chosen is None else chosen]
        found = multi_krum(updates_of(list(arrays)), byzantine=byzantine, chosen=chosen)["w"]
        expected = np.mean([arrays[place] for place in few], axis=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_krum_looks_at_floats_of_all_tensors_and_takes_integers_as_they_are() -> None:
    replies = [
        Update(
            {"a": np.array([0.1 * place]), "b": np.array([[1j * place]]), "seen": np.array(place)},
            site=f"site-{place}",
        )
        for place in (1, 2, 3, 4, 900)
    ]
    assert krum(replies)["seen"] in (2, 3)
    assert krum(replies)["b"].dtype == np.complex128


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_order_of_arrival_does_not_change_a_bit(name: str) -> None:
    arrays = around(RANDOM.normal(size=300).astype(np.float32), 6)
    arrays[1] = arrays[4]  # a tie for Krum
    for place, array in enumerate(arrays):
        array[:100] = 0.0 if place % 2 else -0.0
    replies = updates_of(list(arrays))
    found = {aggregator(name)(order)["w"].tobytes() for order in shuffles(replies)}
    assert len(found) == 1


def shuffles(replies: list[Reply]) -> list[list[Reply]]:
    return [Random(seed).sample(replies, len(replies)) for seed in range(8)]


def test_a_tie_goes_to_the_first_site_by_name() -> None:
    places = {"e": 0.0, "d": 0.0, "c": 1.0, "b": 1.0, "a": 9.0}
    replies = [
        Update({"w": np.array([value]), "who": np.array(ord(site))}, site=site)
        for site, value in places.items()
    ]
    # c and b: 0 + 1; d and e: 0 + 1.
    assert krum(replies)["who"] == ord("b")


@pytest.mark.parametrize("code", ["i1", "i8", "u2", "?", "f2", "c8"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_dtype_keeps_its_own(name: str, code: str) -> None:
    arrays = [np.full(3, number).astype(code) for number in (1, 1, 1, 2, 90)]
    found = aggregator(name)(updates_of(arrays))["w"]
    assert found.dtype == np.dtype(code)
    whole = code not in ("f2", "c8")
    if name == "median" or (name == "trimmed_mean" and whole):
        np.testing.assert_array_equal(found, arrays[0])  # (1 + 1 + 2) / 3 is rounded to 1
    assert len(np.unique(found)) == 1


def test_trimmed_means_of_integers_are_rounded_to_the_nearest() -> None:
    arrays: list[Tensor] = [np.array([number], np.int32) for number in (-100, 2, 3, 3, 100)]
    assert trimmed_mean(updates_of(arrays))["w"].tolist() == [3]
    assert median(updates_of(arrays[:2]))["w"].tolist() == [-49]


@pytest.mark.parametrize(("name", "sites"), [("krum", 1), ("krum", 6), ("multi_krum", 6)])
def test_too_few_sites_for_krum_say_what_to_do(name: str, sites: int) -> None:
    replies = [*updates_of([np.zeros(2)] * sites), SiteFailure("gone", "off")]
    with pytest.raises(NotEnoughSites, match=rf"{name} with byzantine=2 needs .* at least 7 sites"):
        aggregator(name, byzantine=2)(replies)


def test_nothing_left_to_average_says_what_to_do() -> None:
    with pytest.raises(NotEnoughSites, match="leaves out 1 of 2 updates at each end: nothing is"):
        trimmed_mean(updates_of([np.zeros(2)] * 2), trim=0.1)


@pytest.mark.parametrize("chosen", [0, 6])
def test_multi_krum_averages_some_of_the_updates(chosen: int) -> None:
    with pytest.raises(ConfigurationError, match="write a number from 1 to 5"):
        multi_krum(updates_of([np.zeros(2)] * 5), chosen=chosen)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_failures_do_not_count_and_sites_must_agree(name: str) -> None:
    replies: list[Reply] = [*updates_of([np.ones(2)] * 5), SiteFailure("gone", "off")]
    assert aggregator(name)(replies)["w"].tolist() == [1, 1]
    odd = Update({"w": np.ones(3)}, site="odd")
    with pytest.raises(UpdateRejected, match="'odd': tensor 'w' is float64"):
        aggregator(name)([*replies, odd])
    with pytest.raises(UpdateRejected, match="no site sent an update"):
        aggregator(name)([SiteFailure("gone", "off")])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mean", {}, "'mean'; choose one of weighted_mean, median, trimmed_mean, krum, multi_krum"),
        ("krum", {"byzantine": -1}, "byzantine is -1"),
        ("trimmed_mean", {"trim": 0.5}, "trim is 0.5"),
        ("trimmed_mean", {"trim": float("nan")}, "trim is nan"),
    ],
)
def test_an_unknown_name_or_option_is_refused(
    name: str, options: dict[str, float], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        aggregator(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_temporaries_are_small_beside_the_updates(name: str) -> None:
    arrays = around(np.zeros(400_000, np.float32), 6)
    choose: Aggregator = aggregator(name)
    tracemalloc.start()
    choose(updates_of(arrays))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < arrays[0].nbytes + 40 * coordinates._ELEMENTS
