"""Where one site's values differ from the others', as plain sentences.

Only what the sites released is looked at. What chance alone explains is not said: each rule asks
for enough values, and for a difference that is large as well as unlikely.
"""

from collections.abc import Iterator, Mapping

from prefect_federated.statistics.schema import OVERALL, Feature, Statistics, Summary
from prefect_federated.statistics.unlike import (
    FEWEST,
    StandOut,
    all_the_same,
    lies_elsewhere,
    mean_off,
    spread_off,
)
from prefect_federated.statistics.wording import clean, count, listed, percent, short, total

__all__ = ["StandOut", "all_stand_outs", "found_in", "stand_outs"]

MUCH_MISSING = 1 / 3
"""Share of all sites' values from which a column is said to be largely missing."""
MORE_MISSING = 0.25
"""A site's share of missing values above the others', from which it is said."""
_OVERSHADOWED = 0.7


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
    unlike: list[StandOut] = []
    for site, there in full.items():
        others = {other: that for other, that in full.items() if other != site}
        if not others or (there.count or 0) < FEWEST:
            continue
        outs = all_the_same(name, site, there, others, feature.kind)
        if outs is None:
            if len(full) == 2 and site == list(full)[1]:
                continue  # of two sites, each differs from the other: that is said once
            outs = mean_off(name, site, there, others, feature.kind)
        if outs is None:
            outs = spread_off(name, site, there, others, feature.kind)
        if outs is None:
            outs = lies_elsewhere(name, site, there, others, feature.kind)
        if outs is not None:
            unlike.append(outs)
    # A site that is far off makes the others differ from "the others", too: that is not said.
    most = max((each.weight for each in unlike), default=0.0)
    return [*found, *(each for each in unlike if each.weight >= _OVERSHADOWED * most)]


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


def _fraction(share: float) -> str:
    """Returns a share in words where there is one near it."""
    for value, words in ((1, "all"), (3 / 4, "three quarters"), (2 / 3, "two thirds"),
                         (1 / 2, "half"), (1 / 3, "a third")):  # fmt: skip
        if abs(share - value) <= 0.02 and (value < 1 or share == 1):
            return f"about {words}" if abs(share - value) > 0.005 else words
    return percent(share, 1)
