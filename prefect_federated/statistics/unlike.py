"""One site's values against the others': the rules that find what stands out.

Each asks for a difference that is large as well as unlikely by chance, and gives a sentence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.distances import Floats, counts_of, ks, ks_by_chance
from prefect_federated.statistics.schema import Histogram, Summary
from prefect_federated.statistics.wording import clean, count, number, percent, short, spread

MEAN_OFF = 1.0
"""Distance of a site's mean from the others', in the others' standard deviations."""
SPREAD_OFF = 3.0
"""Ratio of a site's standard deviation to every other site's."""
DISTANCE = 0.3
"""Kolmogorov-Smirnov distance, or for categories total variation distance, 0 to 1."""
FEWEST = 10
"""Values of a site about which more than their absence is said."""
_UNLIKELY = 0.01
_UNLIKELY_OFF = 4.0  # standard errors


@dataclass(frozen=True)
class StandOut:
    """One thing worth knowing.

    Args:
        feature: The column.
        site: The site, or "all sites" where it is about the whole column.
        rule: What it is about: 'same' (all values), 'missing', 'infinite', or 'values' (where they
            lie).
        weight: 0 to 100; the larger, the more it matters.
        text: The sentence.
        splits: The splits where it is so; `text` is of the first.
    """

    feature: str
    site: str
    rule: str
    weight: float
    text: str
    splits: tuple[str, ...] = ()


def all_the_same(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    """Says that all of a site's values are the same, where the others' are not."""
    start = f"{short(name)}: {clean(site)} has"
    if there.categories is not None:
        only = _only(there)
        if only is None:
            return None
        total_count = sum(that.count or 0 for that in others.values())
        elsewhere = sum((that.categories or {}).get(only) or 0.0 for that in others.values())
        share = elsewhere / total_count if total_count else 1.0
        if share ** (there.count or 0) >= _UNLIKELY:
            return None
        what = f"the category {short(only)!r}"
        tail = f"elsewhere {percent(elsewhere, total_count)} of them"
        text = f"{start} {what} in all {count(there.count)} values; {tail}."
        return StandOut(name, site, "same", 50 + 20 * (1 - share), text)
    mean, deviation = _pooled(others)
    if there.mean is None or there.variance is None or mean is None or not deviation:
        return None
    if there.variance > 1e-18 * max(there.mean**2, 1e-300) or there.noise:
        return None
    if kind == "boolean":
        share = mean if there.mean else 1 - mean
        if share ** (there.count or 0) >= _UNLIKELY:
            return None
    value = {0: "false", 1: "true"}.get(int(there.mean)) if kind == "boolean" else None
    value = value or number(there.mean, kind)
    what = f"the value {value} in all its {count(there.count)} values"
    tail = (
        f"elsewhere {percent(1 - mean if value == 'false' else mean, 1)} are"
        if kind == "boolean"
        else f"elsewhere the mean is {number(mean, kind)}"
    )
    # A constant that lies far off, such as 0 for "not measured", matters most.
    off = min(abs(there.mean - mean) / deviation, 5.0)
    return StandOut(name, site, "same", 85 + 3 * off, f"{start} {what}; {tail}.")


def mean_off(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    """Says that a site's mean is far from that of the others' values together."""
    mean, deviation = _pooled(others)
    told = [other for other, that in others.items() if that.mean is not None]
    if len(told) == 1 and told[0] < site:
        return None  # of two means, each differs from the other: that is said once
    if kind not in ("numeric", "datetime") or there.mean is None or mean is None or not deviation:
        return None
    off = abs(there.mean - mean) / deviation
    rest = sum(that.count or 0.0 for that in others.values())
    by_chance = _UNLIKELY_OFF * math.sqrt(1 / (there.count or 1.0) + 1 / rest)
    if off < max(MEAN_OFF, by_chance):
        return None
    return StandOut(
        name,
        site,
        "values",
        40 + 8 * min(off, 5.0),
        f"{short(name)}: the mean at {clean(site)} is {number(there.mean, kind)}, elsewhere "
        f"{number(mean, kind)}: {off:.1f} standard deviations apart.",
    )


def spread_off(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    """Says that a site's values are spread far wider, or far less, than at any other site."""
    if kind not in ("numeric", "datetime") or not there.std or (there.count or 0) < 2 * FEWEST:
        return None
    ratios = [there.std / that.std for that in others.values() if that.std]
    if not ratios or not (min(ratios) >= SPREAD_OFF or max(ratios) <= 1 / SPREAD_OFF):
        return None
    ratio = min(ratios) if min(ratios) >= SPREAD_OFF else max(ratios)
    how = f"{ratio:.1f} times" if ratio > 1 else f"{percent(ratio, 1)} of"
    return StandOut(
        name,
        site,
        "values",
        45,
        f"{short(name)}: the standard deviation at {clean(site)} is {spread(there.std, kind)}, "
        f"{how} the nearest elsewhere ({spread(there.std / ratio, kind)}).",
    )


def lies_elsewhere(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    """Says that a site's values are distributed otherwise than the others' together."""
    rest = sum(that.count or 0.0 for that in others.values())
    by_chance = ks_by_chance(there.count or 0.0, rest)
    if there.categories is not None:
        found = _most_different(there, others, kind)
        if found is None or found.distance < max(DISTANCE, by_chance):
            return None
        text = (
            f"{short(name)}: {percent(found.own, 1)} of the values at {clean(site)} are "
            f"{short(found.name)!r}, elsewhere {percent(found.theirs, 1)}."
        )
        return StandOut(name, site, "values", 20 + 40 * found.distance, text)
    if kind == "boolean" and there.mean is not None:
        mean, _ = _pooled(others)
        if mean is None or abs(there.mean - mean) < max(DISTANCE, by_chance):
            return None
        text = (
            f"{short(name)}: {percent(there.mean, 1)} of the values at {clean(site)} are true, "
            f"elsewhere {percent(mean, 1)}."
        )
        return StandOut(name, site, "values", 20 + 40 * abs(there.mean - mean), text)
    if there.histogram is None:
        return None
    alike = [
        (that.histogram, that.count)
        for that in others.values()
        if that.histogram is not None and that.histogram.edges == there.histogram.edges
    ]
    if not alike:
        return None
    own = counts_of(there.histogram, there.count)
    theirs = np.sum([counts_of(histogram, size) for histogram, size in alike], axis=0)
    distance = ks(own, theirs) - _unsure(there.histogram, own)
    if distance < max(DISTANCE, by_chance):
        return None
    mean, deviation = _pooled(others)
    how, means = "spread otherwise than", ""
    if mean is not None and there.mean is not None:
        if abs(there.mean - mean) > 0.2 * (deviation or 0.0):
            how = "higher than" if there.mean > mean else "lower than"
        means = f"mean {number(there.mean, kind)} against {number(mean, kind)}, "
    text = (
        f"{short(name)}: the values at {clean(site)} are {how} elsewhere ({means}distance of the "
        f"distributions {distance:.2f} of 1)."
    )
    return StandOut(name, site, "values", 20 + 40 * distance, text)


@dataclass(frozen=True)
class _Category:
    """A category that a site has more or less of than the others: shares, 0 to 1."""

    name: str
    own: float
    theirs: float
    distance: float


def _most_different(there: Summary, others: Mapping[str, Summary], kind: Kind) -> _Category | None:
    """Returns the category whose share differs most, of those that every site names.

    The distance is the total variation where all is told, else that category's difference: it is
    at least that.
    """
    sites = [that for that in others.values() if that.categories and that.count]
    if not there.count or not sites:
        return None
    rest = sum(that.count or 0.0 for that in sites)
    is_told = all(_is_all_told(each) for each in (there, *sites))
    names = dict.fromkeys(name for each in (there, *sites) for name in each.categories or {})
    found = [
        (name, (own or 0.0) / there.count, sum(size or 0.0 for size in theirs) / rest)
        for name in names
        for own, *theirs in [[(each.categories or {}).get(name) for each in (there, *sites)]]
        if is_told or None not in (own, *theirs)
    ]
    if not found:
        return None
    name, own_share, their_share = max(found, key=lambda each: abs(each[1] - each[2]))
    distance = abs(own_share - their_share)
    if is_told:
        distance = sum(abs(first - second) for _, first, second in found) / 2
    if kind == "boolean" and name == "false" and is_told:
        name, own_share, their_share = "true", 1 - own_share, 1 - their_share
    return _Category(name, own_share, their_share, distance)


def _is_all_told(each: Summary) -> bool:
    sizes = list((each.categories or {}).values())
    known = sum(size or 0.0 for size in sizes)
    return None not in sizes and abs(known - (each.count or 0.0)) < 0.5


def _unsure(histogram: Histogram, counts: Floats) -> float:
    """Returns the share of the values that lie in bins that are withheld."""
    gaps = [count is None for count in histogram.counts]
    return float(counts[gaps].sum() / counts.sum()) if counts.sum() else 0.0


def _only(there: Summary) -> str | None:
    """Returns the one category that all values are of, if it is so."""
    held = {name: size for name, size in (there.categories or {}).items() if size != 0}
    (only, size), *others = [*held.items(), ("", None)]
    if len(others) != 1 or size is None or there.noise or size != there.count:
        return None
    return only


def _pooled(sites: Mapping[str, Summary]) -> tuple[float | None, float | None]:
    """Returns mean and standard deviation of several sites' values together."""
    known = [
        (there.count, there.mean, there.variance)
        for there in sites.values()
        if there.count and there.mean is not None and there.variance is not None
    ]
    size = sum(n for n, _, _ in known)
    if size < 2:
        return None, None
    mean = sum(n * m for n, m, _ in known) / size
    squares = sum((n - 1) * max(v, 0.0) + n * (m - mean) ** 2 for n, m, v in known)
    return mean, float(np.sqrt(squares / (size - 1)))
