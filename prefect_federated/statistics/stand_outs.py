"""Where one site's values differ from the others', as plain sentences.

Only what the sites released is looked at. What chance alone explains is not said: each rule asks
for enough values, and for a difference that is large as well as unlikely.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.distances import added, counts_of, ks, ks_by_chance, of_categories
from prefect_federated.statistics.schema import OVERALL, Feature, Statistics, Summary
from prefect_federated.statistics.wording import (
    clean,
    count,
    listed,
    number,
    percent,
    short,
    spread,
    total,
)

MUCH_MISSING = 1 / 3
"""Share of all sites' values from which a column is said to be largely missing."""
MORE_MISSING = 0.25
"""A site's share of missing values above the others', from which it is said."""
MEAN_OFF = 1.0
"""Distance of a site's mean from the others', in the others' standard deviations."""
SPREAD_OFF = 3.0
"""Ratio of two standard deviations."""
DISTANCE = 0.3
"""Kolmogorov-Smirnov distance, or for categories total variation distance, 0 to 1."""
_FEWEST = 10  # values of a site about which more than their absence is said
_UNLIKELY = 0.01


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


def stand_outs(name: str, feature: Feature) -> list[str]:
    """Returns sentences on one column in one split, the weightiest first.

    Args:
        name: The column's name.
        feature: Its numbers.
    """
    found = sorted(found_in(name, feature), key=lambda each: -each.weight)
    return [each.text for each in found]


def all_stand_outs(result: Statistics) -> list[StandOut]:
    """Returns what stands out in any split, the weightiest first, the same finding once."""
    found: dict[tuple[str, str, str], StandOut] = {}
    largest = sorted(result.splits.items(), key=lambda each: -(each[1].rows or 0))
    for split, there in largest:
        for name, feature in there.features.items():
            for each in found_in(name, feature):
                key = (each.feature, each.site, each.rule)
                known = found.get(key, each)
                found[key] = StandOut(
                    known.feature,
                    known.site,
                    known.rule,
                    max(known.weight, each.weight),
                    known.text,
                    (*known.splits, split),
                )
    some = [
        each
        for (_, site, rule), each in found.items()  # of a column that is largely missing in a
        if site != OVERALL  # small split only, what is said of its sites is enough
        or len(each.splits) == len(result.splits)
        or not any((each.feature, other, rule) in found for other in result.sites)
    ]
    return sorted(some, key=lambda each: -each.weight)


def found_in(name: str, feature: Feature) -> list[StandOut]:
    """Returns what stands out of one column in one split."""
    sites = {site: there for site, there in feature.by_site.items() if there.count is not None}
    found = list(_missing(name, feature.overall, sites))
    found += _infinite(name, sites)
    full = {site: there for site, there in sites.items() if (there.count or 0) >= 1}
    for site, there in full.items():
        others = {other: that for other, that in full.items() if other != site}
        if not others or (there.count or 0) < _FEWEST:
            continue
        outs = _same(name, site, there, others, feature.kind)
        if outs is None:
            if len(full) == 2 and site == list(full)[1]:
                continue  # of two sites, each differs from the other: that is said once
            outs = _mean(name, site, there, others, feature.kind)
        if outs is None:
            outs = _spread(name, site, there, others, feature.kind)
        if outs is None:
            outs = _shape(name, site, there, others, feature.kind)
        if outs is not None:
            found.append(outs)
    return found


def _missing(name: str, overall: Summary, sites: Mapping[str, Summary]) -> Iterator[StandOut]:
    """Says that a column is largely missing, or that it is at one site."""
    rows = {site: total(there) for site, there in sites.items()}
    known = {site: size for site, size in rows.items() if size}
    gone = {site: sites[site].missing or 0.0 for site in known}
    all_rows, all_gone = sum(known.values()), sum(gone.values())
    if not all_rows:
        return
    title = short(name)
    shares = {site: gone[site] / known[site] for site in known}
    if all_gone / all_rows >= MUCH_MISSING:
        each = sorted(shares, key=lambda site: -shares[site])
        parts = [f"{clean(site)} {percent(gone[site], known[site])}" for site in each]
        yield StandOut(
            name,
            OVERALL,
            "missing",
            88 * all_gone / all_rows + 10 * (max(shares.values()) - min(shares.values())),
            f"{title}: {_fraction(all_gone / all_rows)} of all values "
            f"{'is' if _fraction(all_gone / all_rows).startswith('a ') else 'are'} missing "
            f"({count(all_gone)} of {count(all_rows)}): {listed(parts)}.",
        )
        return
    for site, size in known.items():
        rest = all_rows - size
        elsewhere = (all_gone - gone[site]) / rest if rest else 0.0
        if not rest or shares[site] - elsewhere < MORE_MISSING or gone[site] < 3:
            continue
        if not sites[site].count:
            text = f"has no value at all ({count(size)} rows)"
        else:
            text = f"{percent(gone[site], size)} missing ({count(gone[site])} of {count(size)})"
        yield StandOut(
            name,
            site,
            "missing",
            90 * (shares[site] - elsewhere) + 5,
            f"{title}: {clean(site)} {'has ' if sites[site].count else ''}{text}, against "
            f"{percent(all_gone - gone[site], rest)} elsewhere.",
        )


def _infinite(name: str, sites: Mapping[str, Summary]) -> Iterator[StandOut]:
    for site, there in sites.items():
        if there.infinite:
            yield StandOut(
                name,
                site,
                "infinite",
                60,
                f"{short(name)}: {clean(site)} has {count(there.infinite)} infinite "
                f"{'value' if round(there.infinite) == 1 else 'values'}; they are counted, and "
                "left out of all other numbers.",
            )


def _same(
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


def _mean(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    mean, deviation = _pooled(others)
    if kind not in ("numeric", "datetime") or there.mean is None or mean is None or not deviation:
        return None
    off = abs(there.mean - mean) / deviation
    if off < MEAN_OFF:
        return None
    return StandOut(
        name,
        site,
        "values",
        40 + 8 * min(off, 5.0),
        f"{short(name)}: the mean at {clean(site)} is {number(there.mean, kind)}, elsewhere "
        f"{number(mean, kind)}: {off:.1f} standard deviations apart.",
    )


def _spread(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    _, deviation = _pooled(others)
    if kind not in ("numeric", "datetime") or not deviation or not there.std:
        return None
    ratio = there.std / deviation
    if 1 / SPREAD_OFF < ratio < SPREAD_OFF or (there.count or 0) < 2 * _FEWEST:
        return None
    how = f"{ratio:.1f} times" if ratio > 1 else f"{percent(ratio, 1)} of"
    return StandOut(
        name,
        site,
        "values",
        45,
        f"{short(name)}: the standard deviation at {clean(site)} is {spread(there.std, kind)}, "
        f"{how} that elsewhere ({spread(deviation, kind)}).",
    )


def _shape(
    name: str, site: str, there: Summary, others: Mapping[str, Summary], kind: Kind
) -> StandOut | None:
    rest = sum(that.count or 0.0 for that in others.values())
    by_chance = ks_by_chance(there.count or 0.0, rest)
    if there.categories is not None:
        names, own, theirs = of_categories(*_categories(there, others))
        if own.sum() <= 0 or theirs.sum() <= 0:
            return None
        differences = own / own.sum() - theirs / theirs.sum()
        distance = float(np.abs(differences).sum() / 2)
        if distance < max(DISTANCE, by_chance):
            return None
        most = int(np.abs(differences).argmax())
        text = (
            f"{short(name)}: {percent(own[most], own.sum())} of the values at {clean(site)} are "
            f"{short(names[most])!r}, elsewhere {percent(theirs[most], theirs.sum())}."
        )
        return StandOut(name, site, "values", 20 + 40 * distance, text)
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
        that.histogram
        for that in others.values()
        if that.histogram is not None and that.histogram.edges == there.histogram.edges
    ]
    if not alike:
        return None
    distance = ks(counts_of(there.histogram, there.count), counts_of(added(alike), rest))
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


def _categories(
    there: Summary, others: Mapping[str, Summary]
) -> tuple[dict[str, float], dict[str, float]]:
    theirs: dict[str, float] = {}
    for that in others.values():
        for category, size in (that.categories or {}).items():
            theirs[category] = theirs.get(category, 0.0) + (size or 0.0)
    return {name: size or 0.0 for name, size in (there.categories or {}).items()}, theirs


def _only(there: Summary) -> str | None:
    """Returns the one category that all values are of, if it is so."""
    held = {name: size for name, size in (there.categories or {}).items() if size != 0}
    if len(held) != 1 or there.other_categories or there.noise or None in held.values():
        return None
    return next(iter(held))


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


def _fraction(share: float) -> str:
    """Returns a share in words where there is one near it."""
    for value, words in ((1, "all"), (3 / 4, "three quarters"), (2 / 3, "two thirds"),
                         (1 / 2, "half"), (1 / 3, "a third")):  # fmt: skip
        if abs(share - value) <= 0.02 and (value < 1 or share == 1):
            return f"about {words}" if abs(share - value) > 0.005 else words
    return percent(share, 1)
