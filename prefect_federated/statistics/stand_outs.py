"""Where one site's values differ from the others', as plain sentences.

Only what the sites released is looked at. What chance alone explains is not said: each rule asks
for enough values, and for a difference that is large as well as unlikely.
"""

from collections.abc import Iterator, Mapping

from prefect_federated.statistics.absence import Rows, absence, rows_of, together, values_of
from prefect_federated.statistics.schema import OVERALL, Feature, Statistics, Summary
from prefect_federated.statistics.unlike import (
    FEWEST,
    StandOut,
    all_the_same,
    lies_elsewhere,
    mean_off,
    spread_off,
)
from prefect_federated.statistics.wording import clean, count, listed, percent, short

__all__ = ["StandOut", "all_stand_outs", "found_in", "stand_outs"]

MUCH_MISSING = 1 / 3
"""Share of all sites' values from which a column is said to be largely missing."""
MORE_MISSING = 0.25
"""A site's share of missing values above the others', from which it is said."""
_OVERSHADOWED = 0.7


def stand_outs(name: str, feature: Feature, rows: Rows) -> list[str]:
    """Returns sentences on one column in one split, the weightiest first.

    Args:
        name: The column's name.
        feature: Its numbers.
        rows: Of the split, at each site.
    """
    found = sorted(found_in(name, feature, rows), key=lambda each: -each.weight)
    return [each.text for each in found]


def all_stand_outs(result: Statistics) -> list[StandOut]:
    """Returns what stands out in any split, the weightiest first, the same finding once."""
    found: dict[tuple[str, str, str], StandOut] = {}
    largest = sorted(result.splits.items(), key=lambda each: -(each[1].rows or 0))
    for split, there in largest:
        for name, feature in there.features.items():
            for each in found_in(name, feature, rows_of(there)):
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


def found_in(name: str, feature: Feature, rows: Rows) -> list[StandOut]:
    """Returns what stands out of one column in one split."""
    found = list(_missing(name, feature, rows))
    found += _infinite(name, feature.by_site)
    full = {
        site: there.model_copy(update={"count": size})
        for site, there in feature.by_site.items()
        if (size := values_of(there, rows.get(site)))
    }
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


def _missing(name: str, feature: Feature, rows: Rows) -> Iterator[StandOut]:
    """Says that a column is largely missing, or that it is at one site."""
    found = {site: absence(each, rows.get(site)) for site, each in feature.by_site.items()}
    known = {site: each for site, each in found.items() if each is not None}
    whole = together(feature, rows)
    if whole is None:
        return
    title = short(name)
    if whole.low / whole.rows >= MUCH_MISSING:
        shares = [each.share for each in known.values()]
        parts = [
            f"{clean(site)} {each.words()}"
            for site, each in sorted(known.items(), key=lambda one: -one[1].share)
        ]
        words = _fraction(whole.share) if whole.is_exact else whole.words()
        counts = f" ({count(whole.low)} of {count(whole.rows)})" if whole.is_exact else ""
        yield StandOut(
            name,
            OVERALL,
            "missing",
            88 * whole.share + 10 * (max(shares) - min(shares)),
            f"{title}: {_of_all_values(words)} missing{counts}: {listed(parts)}.",
        )
        return
    for site, each in known.items():
        rest, gone = whole.rows - each.rows, whole.high - each.high
        if not rest or each.low / each.rows - gone / rest < MORE_MISSING or each.low < 3:
            continue
        if each.low == each.rows:
            text = f"{clean(site)} has no value at all ({count(each.rows)} rows)"
        elif each.is_exact:
            text = f"{clean(site)} has {each.words()} missing"
            text += f" ({count(each.low)} of {count(each.rows)})"
        else:
            text = f"{clean(site)} has {each.words()} missing, of {count(each.rows)} rows"
        yield StandOut(
            name,
            site,
            "missing",
            90 * (each.low / each.rows - gone / rest) + 5,
            f"{title}: {text}, against {percent(gone, rest)} elsewhere.",
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


def _of_all_values(words: str) -> str:
    """Returns a share as the beginning of a sentence.

    >>> _of_all_values("all"), _of_all_values("about a third")
    ('all values are', 'about a third of all values is')
    """
    if words == "all":
        return "all values are"
    is_one = words.removeprefix("about ").startswith("a ")
    return f"{words} of all values {'is' if is_one else 'are'}"


def _fraction(share: float) -> str:
    """Returns a share in words where there is one near it."""
    for value, words in ((1, "all"), (3 / 4, "three quarters"), (2 / 3, "two thirds"),
                         (1 / 2, "half"), (1 / 3, "a third")):  # fmt: skip
        if abs(share - value) <= 0.02 and (value < 1 or share == 1):
            return f"about {words}" if abs(share - value) > 0.005 else words
    return percent(share, 1)
