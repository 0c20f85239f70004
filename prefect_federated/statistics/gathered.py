"""What all sites have answered so far, and what is still to be asked of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.exact import takes_a_range
from prefect_federated.statistics.quantiles import (
    Cumulative,
    Near,
    narrowed,
    places_to_refine,
    together,
)
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    FromSite,
    Histogram,
    SiteState,
    SplitFromSite,
    Summary,
    Withheld,
)

Place = tuple[str, str | None, str]
"""Split, group (None for all of the split), column."""

_SHARE_OF_STD = 0.01
_SHARE_OF_VALUES = 0.02  # the middle of the bound is within 1 % of the place asked for


@dataclass
class Gathered:
    """The sites' answers, merged site by site.

    Args:
        states: Site -> whether it has answered.
        splits: Site -> split -> its numbers.
        finer: Site -> place -> counts between further edges.
        withheld: Site -> what it keeps back as a whole.
        notes: Sentences for a person.
    """

    states: dict[str, SiteState] = field(default_factory=dict)
    splits: dict[str, dict[str, SplitFromSite]] = field(default_factory=dict)
    finer: dict[str, dict[Place, list[Histogram]]] = field(default_factory=dict)
    withheld: dict[str, list[Withheld]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _kinds: dict[str, Kind] = field(default_factory=dict, repr=False)

    @property
    def sites(self) -> list[str]:
        """The sites that have answered, by name."""
        return sorted(site for site, state in self.states.items() if state.state == "answered")

    def add(self, site: str, answer: FromSite, fine: FromSite | None = None) -> None:
        """Takes a site's answer to `describe` or `count`, with its counts in parts of bins."""
        self._kinds = {}
        known = self.splits.setdefault(site, {})
        for name, split in answer.splits.items():
            known[name] = _joined(known[name], split) if name in known else split
        self.withheld[site] = _both(self.withheld.get(site, []), answer.withheld)
        before = self.states.get(site)
        released = answer.released or (before.released if before else None)
        self.states[site] = SiteState(state="answered", released=released)
        if fine is not None:
            self.refine(site, fine)

    def refine(self, site: str, answer: FromSite) -> None:
        """Takes a site's counts between further edges."""
        finer = self.finer.setdefault(site, {})
        for split, part in answer.splits.items():
            for group, rows in ((None, part), *part.groups.items()):
                for name, column in rows.columns.items():
                    if column.summary.histogram is not None:
                        place = (split, group, name)
                        finer.setdefault(place, []).append(column.summary.histogram)

    def fail(self, site: str, kind: str, reason: str) -> None:
        """Notes that a site has not answered; one that has answered before stays with that."""
        if site in self.splits:
            if kind != "refine":  # without it, only the bounds of quantiles are wider
                told = Withheld(what="histograms", reason=f"it did not answer {kind!r}: {reason}")
                self.withheld[site] = _both(self.withheld.get(site, []), [told])
            return
        self.states[site] = SiteState(state="failed", reason=reason)

    def missing(self, site: str, given_up: str | None, waited: str) -> None:
        """Notes that a site has not been asked, if it has not.

        Args:
            site: The site's name.
            given_up: Why it will not come, such as that its policy refuses the job; None if it is
                only away.
            waited: How long it was waited for.
        """
        state = SiteState(state="absent", reason=waited)
        if given_up is not None:
            state = SiteState(state="failed", reason=given_up)
        self.states.setdefault(site, state)

    def kinds(self) -> dict[str, Kind]:
        """Returns column -> what it holds, at most of the sites that have it."""
        if self._kinds:
            return self._kinds
        votes: dict[str, dict[Kind, int]] = {}
        for site in self.sites:
            for name, kind in self.kinds_at(site).items():
                if kind != "empty":
                    of_column = votes.setdefault(name, {})
                    of_column[kind] = of_column.get(kind, 0) + 1
                votes.setdefault(name, {})
        self._kinds = {
            name: max(of_column, key=lambda kind: of_column[kind]) if of_column else "empty"
            for name, of_column in votes.items()
        }
        return self._kinds

    def kinds_at(self, site: str) -> dict[str, Kind]:
        """Returns column -> what it holds at a site; `empty` only if it is in all splits."""
        kinds: dict[str, Kind] = {}
        for split in self.splits.get(site, {}).values():
            for name, column in split.columns.items():
                if kinds.get(name, "empty") == "empty":
                    kinds[name] = column.kind
        return kinds

    def agreed(self, place: Place) -> Iterator[tuple[str, ColumnAtSite]]:
        """Yields site and column for those sites where it holds what it does at most of them."""
        split, group, name = place
        wanted = self.kinds().get(name)
        for site in self.sites:
            part = self.splits[site].get(split)
            rows = part if part is None or group is None else part.groups.get(group)
            column = rows.columns.get(name) if rows is not None else None
            if column is not None and column.kind in (wanted, "empty"):
                yield site, column

    def ranges(
        self, given: Mapping[str, tuple[float, float]], earlier: Mapping[str, tuple[float, float]]
    ) -> dict[str, tuple[float, float]]:
        """Returns column -> the range of its histograms, which all sites and splits share.

        Args:
            given: By the job.
            earlier: Of the run before: kept where it still fits, so that runs can be compared.
        """
        ranges: dict[str, tuple[float, float]] = {}
        for name, kind in self.kinds().items():
            if not takes_a_range(kind):
                continue
            ends = [
                (column.summary.min, column.summary.max)
                for split in self.all_splits()
                for _, column in self.agreed((split, None, name))
            ]
            lows = [low for low, _ in ends if low is not None]
            highs = [high for _, high in ends if high is not None]
            if name in given:
                ranges[name] = given[name]
            elif lows and highs:
                ranges[name] = _range(min(lows), max(highs), earlier.get(name))
        return ranges

    def all_splits(self) -> list[str]:
        """Returns the splits that sites have, in the order in which they first name them."""
        return list(dict.fromkeys(name for site in self.sites for name in self.splits[site]))

    def incomplete(self, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
        """Returns the sites that are still to be asked for histograms, or for sums.

        Args:
            ranges: Of the columns that take a histogram.
        """
        return [
            site
            for site in self.sites
            if any(
                (name in ranges and column.summary.histogram is None)
                or (column.kind == "boolean" and _lacks_sums(column.summary))
                for split in self.splits[site].values()
                for name, column in split.columns.items()
            )
        ]

    def known(self, place: Place) -> dict[str, Cumulative]:
        """Returns site -> what its counts tell of how many values lie below which edges."""
        known: dict[str, Cumulative] = {}
        for site, column in self.agreed(place):
            summary = column.summary
            found = [summary.histogram, *self.finer.get(site, {}).get(place, [])]
            parts = [
                part
                for histogram in found
                if histogram is not None
                and (part := Cumulative.of(histogram, summary.count, summary.noise is None))
            ]
            if parts and (ends := Cumulative.between(summary)):
                parts.append(ends)
            for part in parts:
                known[site] = narrowed(known[site], part) if site in known else part
        return known

    def to_refine(
        self, wanted: Sequence[float], deviations: Mapping[Place, float], parts: int
    ) -> dict[str, dict[str, list[float]]]:
        """Returns split -> column -> edges to count between; empty if all quantiles are near.

        Near are bounds that are a hundredth of a standard deviation apart, or that have a fiftieth
        of all values between them.

        Args:
            wanted: The quantiles.
            deviations: Place -> standard deviation of all values.
            parts: Into how many parts a bin is divided.
        """
        edges: dict[str, dict[str, list[float]]] = {}
        for place, deviation in deviations.items():
            split, group, name = place
            if group is not None:
                continue
            near = Near(deviation * _SHARE_OF_STD, _SHARE_OF_VALUES)
            known = together(list(self.known(place).values()))
            found = places_to_refine(known, wanted, near, parts)
            if found:
                edges.setdefault(split, {})[name] = found
        return edges


def _lacks_sums(summary: Summary) -> bool:
    """Whether sums are neither told nor withheld: a database has told the rest."""
    return bool(summary.count) and summary.mean is None and not summary.withheld


def _range(low: float, high: float, earlier: tuple[float, float] | None) -> tuple[float, float]:
    if earlier is not None:
        width = earlier[1] - earlier[0]
        if earlier[0] <= low and high <= earlier[1] and width <= 1.5 * (high - low):
            return earlier
    return low, high


def _joined(one: SplitFromSite, newer: SplitFromSite) -> SplitFromSite:
    columns = dict(one.columns)
    for name, column in newer.columns.items():
        known = columns.get(name)
        columns[name] = column if known is None else _joined_column(known, column)
    groups = dict(one.groups)
    for name, group in newer.groups.items():
        groups[name] = _joined(groups[name], group) if name in groups else group
    return SplitFromSite(
        rows=one.rows if newer.rows is None else newer.rows,
        columns=columns,
        co_moments=newer.co_moments or one.co_moments,
        groups=groups,
        withheld=_both(one.withheld, newer.withheld),
    )


def _joined_column(one: ColumnAtSite, newer: ColumnAtSite) -> ColumnAtSite:
    told = {
        name: value
        for name in Summary.model_fields
        if name != "withheld" and (value := getattr(newer.summary, name)) not in (None, [])
    }
    withheld = _both(one.summary.withheld, newer.summary.withheld)
    summary = one.summary.model_copy(update={**told, "withheld": withheld})
    return ColumnAtSite(kind=newer.kind if one.kind == "empty" else one.kind, summary=summary)


def _both(one: Sequence[Withheld], other: Sequence[Withheld]) -> list[Withheld]:
    return list(dict.fromkeys([*one, *other]))
