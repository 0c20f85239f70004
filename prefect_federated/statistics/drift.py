"""How a run differs from the one before: PSI and Kolmogorov-Smirnov, for each site and column.

What cannot be compared is said in a note: no column, site or split is left out silently.
"""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from prefect_federated.statistics.distances import (
    Floats,
    binned,
    ks,
    ks_by_chance,
    merged,
    of_categories,
    psi,
    psi_by_chance,
)
from prefect_federated.statistics.schema import (
    OVERALL,
    Comparison,
    Drift,
    Feature,
    Histogram,
    Split,
    Statistics,
    Summary,
)
from prefect_federated.statistics.wording import clean, keeps_back, listed, short

PSI_THRESHOLD = 0.2
"""From here a shift counts as major, by the rule of thumb of credit scoring."""
KS_THRESHOLD = 0.2
_MOVED = "the bins differ from the run before; only what differs for certain counts"
_GAPS = "some bins or categories are withheld; their values are taken to lie evenly or together"


def compare(
    result: Statistics,
    earlier: Statistics,
    psi_threshold: float = PSI_THRESHOLD,
    ks_threshold: float = KS_THRESHOLD,
) -> Comparison:
    """Returns how each column differs from the run before, at each site and over all.

    A difference is past its threshold if it is larger than that, and larger than what chance alone
    exceeds once in a hundred times; few values differ much without a reason. PSI takes the missing
    values as a bin of their own, so that a column that is emptied shows; the KS distance is of the
    values alone, and null for categories, which have no order. Groups are not compared.

    Args:
        result: The newer run.
        earlier: The run before.
        psi_threshold: Population stability index; 0.1 is usually called a small shift, 0.2 a major.
        ks_threshold: Kolmogorov-Smirnov distance, 0 to 1.
    """
    drifts: list[Drift] = []
    notes: dict[str, list[str]] = {}
    judge = _Judge(psi_threshold, ks_threshold, notes)
    for split in _both(earlier.splits, result.splits):
        before, now = earlier.splits.get(split), result.splits.get(split)
        if before is None or now is None:
            notes.setdefault(f"split {clean(split)}: {_only(now)}", [])
            continue
        drifts += judge.split(split, before, now)
    notes = {**_sites(result, earlier), **notes}
    if result.group_by is not None:
        notes.setdefault("groups are not compared, whole splits are", [])
    return Comparison(
        run=earlier.run,
        created=earlier.created,
        psi_threshold=psi_threshold,
        ks_threshold=ks_threshold,
        drifts=sorted(drifts, key=_size, reverse=True),
        notes=[
            f"{note}: {listed(places)}." if places else f"{note}." for note, places in notes.items()
        ],
    )


class _Judge:
    """Compares column by column, and notes what cannot be compared.

    Args:
        psi_threshold: Population stability index.
        ks_threshold: Kolmogorov-Smirnov distance.
        notes: Is filled: a note -> the places where it holds.
    """

    def __init__(
        self, psi_threshold: float, ks_threshold: float, notes: dict[str, list[str]]
    ) -> None:
        self._psi, self._ks, self._notes = psi_threshold, ks_threshold, notes

    def split(self, split: str, before: Split, now: Split) -> Iterable[Drift]:
        """Compares all columns of a split."""
        for name in _both(before.features, now.features):
            first, second = before.features.get(name), now.features.get(name)
            if first is None or second is None:
                self._note(f"column {short(name)}: {_only(second)}", clean(split))
            elif len({first.kind, second.kind} - {"empty"}) > 1:
                what = f"column {short(name)} was {first.kind} and is {second.kind} now"
                self._note(f"{what}, not compared", clean(split))
            else:
                yield from self._feature(split, name, first, second)

    def _feature(self, split: str, name: str, before: Feature, now: Feature) -> Iterable[Drift]:
        sites = [OVERALL, *_both(before.by_site, now.by_site)]
        for site in sites:
            first = before.overall if site == OVERALL else before.by_site.get(site)
            second = now.overall if site == OVERALL else now.by_site.get(site)
            where = f"{short(name)} at {clean(site)} in {clean(split)}"
            if site == OVERALL and _tellers(before) != _tellers(now):
                self._note("told by other sites than in the run before, not compared", where)
                continue
            if first is None or second is None:
                self._note(_only(second), where)
                continue
            if why := _cannot(first, second):
                self._note(why, where)
                continue
            yield self._drift(split, name, site, first, second)

    def _drift(self, split: str, name: str, site: str, before: Summary, now: Summary) -> Drift:
        where = f"{short(name)} at {clean(site)} in {clean(split)}"
        distance: float | None = None
        if before.categories is not None or now.categories is not None:
            _, first, second = of_categories(_categories(before), _categories(now))
            if any(None in (each.categories or {}).values() for each in (before, now)):
                self._note(_GAPS, where)
        else:
            first, second, was_moved = _histograms(before, now)
            if was_moved:
                self._note(_MOVED, where)
            if any(h and None in h.counts for h in (before.histogram, now.histogram)):
                self._note(_GAPS, where)
            if first.sum() > 0 and second.sum() > 0:
                distance = ks(first, second)
            first, second = merged(first, second)
        sizes = (float(first.sum()), float(second.sum()))  # the counts may be withheld
        gone = (before.missing or 0.0, now.missing or 0.0)
        if before.missing is not None and now.missing is not None and any(gone):
            first, second = _with(first, gone[0]), _with(second, gone[1])
        index = psi(first, second)
        is_past = index > self._psi
        by_chance = psi_by_chance(len(first), sizes[0] + gone[0], sizes[1] + gone[1])
        is_psi, is_ks = is_past and index > by_chance, False
        if distance is not None and distance > self._ks:
            is_past, is_ks = True, distance > ks_by_chance(*sizes)
        if is_past and not (is_psi or is_ks):
            self._note("past a threshold, but not beyond chance for so few values", where)
        return Drift(
            split=split,
            feature=name,
            site=site,
            psi=index,
            ks=distance,
            is_past_threshold=is_psi or is_ks,
        )

    def _note(self, note: str, where: str) -> None:
        self._notes.setdefault(note, []).append(where)


def _sites(result: Statistics, earlier: Statistics) -> dict[str, list[str]]:
    """Returns notes on sites that were not there in one of the runs."""
    notes: dict[str, list[str]] = {}
    for site in _both(earlier.sites, result.sites):
        first, second = earlier.sites.get(site), result.sites.get(site)
        if first is None or second is None:
            notes.setdefault(f"site asked {_only(second)}", []).append(clean(site))
            continue
        for state, when in ((first, "in the run before"), (second, "now")):
            if state.state != "answered":
                reason = f" ({state.reason})" if state.reason else ""
                notes.setdefault(f"site {state.state} {when}", []).append(f"{clean(site)}{reason}")
    return notes


def _cannot(before: Summary, now: Summary) -> str | None:
    """Returns why two summaries cannot be compared; None if they can."""
    for each, when in ((before, "in the run before"), (now, "now")):
        if not _is_there(each):
            reason = keeps_back(each.withheld, "histogram") or keeps_back(
                each.withheld, "categories"
            )
            return f"withheld {when}, {reason}" if reason else f"no histogram {when}"
    if all(size == 0 for size in (before.count, before.missing, now.count, now.missing)):
        return "no values in either run"
    is_first, is_second = before.categories is not None, now.categories is not None
    if is_first != is_second and before.count != 0 and now.count != 0:
        return "categories in one run, numbers in the other"
    return None


def _tellers(feature: Feature) -> set[str]:
    """Returns the sites that have told how a column's values lie."""
    return {site for site, each in feature.by_site.items() if _is_there(each)}


def _is_there(each: Summary) -> bool:
    return each.histogram is not None or each.categories is not None or each.count == 0


def _histograms(before: Summary, now: Summary) -> tuple[Floats, Floats, bool]:
    """Returns the counts of two histograms on common edges; an empty one has none anywhere."""
    first, second = before.histogram, now.histogram
    some = first or second or Histogram(edges=[0, 1], counts=[0])
    first = first or Histogram(edges=some.edges, counts=[0.0] * len(some.counts))
    second = second or Histogram(edges=some.edges, counts=[0.0] * len(some.counts))
    both = binned(first, second, (before.count, now.count))
    return both.before, both.now, both.was_moved


def _categories(each: Summary) -> dict[str, float]:
    """Returns the categories' counts; those that are withheld are together with the others."""
    known = {name: size for name, size in (each.categories or {}).items() if size is not None}
    rest = each.other_categories or 0.0
    if each.other_categories is None and each.count is not None:
        rest = max(each.count - sum(known.values()), 0.0)
    return {**known, "\0": rest} if rest else known


def _with(counts: Floats, missing: float) -> Floats:
    return np.append(counts, max(missing, 0.0))


def _size(drift: Drift) -> tuple[bool, float]:
    return drift.is_past_threshold, max(drift.psi or 0.0, drift.ks or 0.0)


def _only(now: object) -> str:
    return "in the run before only" if now is None else "in this run only"


def _both(before: Iterable[str], now: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(chain(before, now)))
