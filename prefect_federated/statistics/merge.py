"""From the sites' answers, the result of a statistics job."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect_federated.datasets.kinds import CALLED, Kind
from prefect_federated.statistics.gathered import Gathered, Place
from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.merged_columns import (
    overall,
    overall_correlation,
    shown,
    shown_correlation,
)
from prefect_federated.statistics.schema import (
    Feature,
    Split,
    SplitAtSite,
    SplitFromSite,
    Statistics,
    Summary,
)
from prefect_federated.statistics.withholding import lines


@dataclass(frozen=True)
class About:
    """Which job it is.

    Args:
        dataset: The dataset's name.
        name: What runs are compared by.
        run: Id of the flow run.
        created: When.
        quantiles: Those that were asked for.
        group_by: The column by which rows are grouped.
    """

    dataset: str
    name: str
    run: str
    created: datetime
    quantiles: Sequence[float]
    group_by: str | None = None


def statistics_of(gathered: Gathered, about: About) -> Statistics:
    """Returns the result: each column at each site and over all of them, and all that is withheld.

    A column that holds something else at a site than at most others is shown for that site, left
    out of what is over all sites, and named in the notes.
    """
    splits = {name: _split(gathered, about, name) for name in gathered.all_splits()}
    return Statistics(
        dataset=about.dataset,
        name=about.name,
        run=about.run,
        created=about.created,
        sites=dict(sorted(gathered.states.items())),
        splits=splits,
        group_by=about.group_by,
        withheld=lines(gathered),
        notes=[*gathered.notes, *_differing_kinds(gathered), *_outside(gathered)],
    )


def deviations(gathered: Gathered) -> dict[Place, float]:
    """Returns split and column -> standard deviation over all sites, where it is known."""
    found: dict[Place, float] = {}
    for split in gathered.all_splits():
        for name in _columns(gathered, split, None):
            place = (split, None, name)
            of_sites = {site: column.summary for site, column in gathered.agreed(place)}
            if any(summary.histogram is not None for summary in of_sites.values()):
                std = overall(of_sites, {}, ()).std
                if std is not None:
                    found[place] = std
    return found


def _split(gathered: Gathered, about: About, name: str, group: str | None = None) -> Split:
    parts = dict(_parts(gathered, name, group))
    rows = [part.rows for part in parts.values() if part.rows is not None]
    sums = {site: part.co_moments for site, part in parts.items() if part.co_moments is not None}
    names = [] if group is not None else _groups(parts)
    return Split(
        rows=sum(rows) if rows else None,
        sites={
            site: SplitAtSite(rows=part.rows, withheld=part.withheld)
            for site, part in parts.items()
        },
        features={
            column: _feature(gathered, about, (name, group, column), parts)
            for column in _columns(gathered, name, group)
        },
        correlation=overall_correlation(sums),
        correlation_by_site={site: shown_correlation(part) for site, part in sums.items()},
        groups={each: _split(gathered, about, name, each) for each in names},
    )


def _groups(parts: Mapping[str, SplitFromSite]) -> list[str]:
    return list(dict.fromkeys(group for part in parts.values() for group in part.groups))


def _parts(
    gathered: Gathered, split: str, group: str | None
) -> Iterator[tuple[str, SplitFromSite]]:
    for site in gathered.sites:
        part = gathered.splits[site].get(split)
        if part is not None and group is not None:
            part = part.groups.get(group)
        if part is not None:
            yield site, part


def _columns(gathered: Gathered, split: str, group: str | None) -> list[str]:
    return list(
        dict.fromkeys(name for _, part in _parts(gathered, split, group) for name in part.columns)
    )


def _feature(
    gathered: Gathered, about: About, place: Place, parts: Mapping[str, SplitFromSite]
) -> Feature:
    split, group, name = place
    known = gathered.known(place)
    agreed = {site: column.summary for site, column in gathered.agreed(place)}
    by_site: dict[str, Summary] = {}
    for site, part in parts.items():
        if name in part.columns:
            summary = part.columns[name].summary
            by_site[site] = shown(summary, known.get(site), about.quantiles)
        elif group is not None:
            of_all = gathered.splits[site][split].columns.get(name)
            if of_all is not None and of_all.summary == Summary(withheld=of_all.summary.withheld):
                by_site[site] = Summary(withheld=of_all.summary.withheld)
    return Feature(
        kind=gathered.kinds()[name],
        overall=overall(agreed, known, about.quantiles),
        by_site=by_site,
        without=[site for site in parts if site not in by_site],
    )


def _differing_kinds(gathered: Gathered) -> Iterator[str]:
    for name, kind in gathered.kinds().items():
        others: dict[Kind, list[str]] = {}
        for site in gathered.sites:
            there = gathered.kinds_at(site).get(name, "empty")
            others.setdefault(there, []).append(site)
        others.pop("empty", None)
        if len(others) > 1:
            has = [f"{CALLED[each]} at {', '.join(sites)}" for each, sites in others.items()]
            out = sorted(site for each, sites in others.items() if each != kind for site in sites)
            yield (
                f"Column {name!r} holds {'; '.join(has)}. What is over all sites leaves out "
                f"{', '.join(out)}: let all sites store it alike, or say in a site's datasets.yaml "
                "(`kinds`) what it is."
            )


def _outside(gathered: Gathered) -> Iterator[str]:
    """Yields how many values histograms leave out, where a range is narrower than the values."""
    for split in gathered.all_splits():
        for name in _columns(gathered, split, None):
            outside, ends = 0.0, (0.0, 0.0)
            for _, column in gathered.agreed((split, None, name)):
                histogram = column.summary.histogram
                if histogram is not None and histogram.edges[0] == -OUTER:
                    outside += (histogram.counts[0] or 0) + (histogram.counts[-1] or 0)
                    ends = histogram.edges[1], histogram.edges[-2]
            if outside >= 1:
                yield (
                    f"{split}, {name!r}: {outside:,.0f} values are not in the histogram, whose "
                    f"range is [{ends[0]:g}, {ends[1]:g}]."
                )
