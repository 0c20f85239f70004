"""The result in a terminal: an overview, a table of the columns, one column site by site."""

import difflib
from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from prefect_federated.errors import StatisticsNotFound
from prefect_federated.statistics.absence import Rows, absence_words, rows_of
from prefect_federated.statistics.figures import COUNTED
from prefect_federated.statistics.report_page import result_sites
from prefect_federated.statistics.schema import OVERALL, Feature, Split, Statistics, Summary
from prefect_federated.statistics.stand_outs import all_stand_outs, stand_outs
from prefect_federated.statistics.terminal_bars import Histogram, bars
from prefect_federated.statistics.terminal_table import Fitted
from prefect_federated.statistics.wording import (
    NONE,
    WITHHELD,
    clean,
    count,
    keeps_back,
    listed,
    not_there,
    number,
    overall_of,
    percent,
    short,
    spread,
    total,
    weighty_first,
)

__all__ = ["bars", "one_column", "overview"]

_LINES = 10
_DRIFTS = 20
_CATEGORIES = 12
_GROUP_ROWS = 40
_PAIRS = 3
_NUMBERS = ("values", "missing", "mean", "std", "min", "max")
_BARS_HEADER = "how they lie"


def overview(result: Statistics) -> RenderableType:
    """Returns the whole result, as much of it as a person reads in a terminal."""
    parts: list[RenderableType] = [_title(result)]
    found = [f"{each.text} ({clean(', '.join(each.splits))})" for each in all_stand_outs(result)]
    parts += _lines("What stands out", [*map(clean, result.notes), *found])
    parts += _lines("What is withheld", [*map(clean, weighty_first(result.withheld))])
    parts += _sites(result)
    for name, split in result.splits.items():
        parts.append(_columns(clean(name), split))
        if strongest := _correlations(split):
            parts.append(Text(f"Strongest correlations: {strongest}\n"))
    if result.group_by is not None and any(split.groups for split in result.splits.values()):
        by = short(result.group_by)
        parts.append(Text(f"by '{by}': see --feature NAME or the report\n"))
    parts += _drift(result)
    return Group(*parts)


def one_column(result: Statistics, name: str) -> RenderableType:
    """Returns one column in every split, site by site.

    Raises:
        StatisticsNotFound: the result has no such column.
    """
    parts: list[RenderableType] = [_title(result)]
    splits = {split: there for split, there in result.splits.items() if name in there.features}
    if not splits:
        names = list(dict.fromkeys(n for there in result.splits.values() for n in there.features))
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:10]
        raise StatisticsNotFound(
            f"the result has no column {name!r}. It has {len(names)}; near that: "
            f"{', '.join(map(repr, near))}."
        )
    for split, there in splits.items():
        title, feature = f"{short(name)} in {clean(split)}", there.features[name]
        parts += _column(title, name, feature, rows_of(there))
        if strongest := _correlations(there, name):
            parts.append(Text(f"Strongest correlations: {strongest}"))
        if result.group_by is not None and name != result.group_by:
            parts += _groups(title, name, result.group_by, there)
    return Group(*parts)


def _title(result: Statistics) -> Text:
    made = f"{result.created:%Y-%m-%d %H:%M}, run {clean(result.run)}"
    return Text.assemble(
        (f"Statistics of {clean(result.dataset)}", "bold"), f"  {clean(result.name)}, {made}"
    )


def _lines(title: str, lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    shown = [Text(f"- {line}") for line in lines[:_LINES]]
    if len(lines) > _LINES:
        shown.append(Text(f"- and {len(lines) - _LINES} more, in the HTML report"))
    return [Text(f"\n{title}", style="bold"), *shown]


def _sites(result: Statistics) -> list[RenderableType]:
    splits = [f"{clean(name)}: rows" for name in result.splits]
    table = Fitted(["site", "state", *splits], title="\nSites", words=["state"])
    for site in result_sites(result):
        state = result.sites.get(site)
        rows = []
        for split in result.splits.values():
            there = split.sites.get(site)
            if there is None:
                rows.append("")
            elif there.rows is None and there.withheld:
                rows.append(WITHHELD)
            else:
                rows.append(count(there.rows))
        table.add_row(short(site), "answered" if state is None else state.state, *rows)
    table.add_row(OVERALL, "", *(count(split.rows) for split in result.splits.values()))
    away = [
        Text(f"- {not_there(site, state)}")
        for site, state in result.sites.items()
        if state.state != "answered"
    ]
    if not away:
        return [table]
    return [table, Text("Sites that did not answer", style="bold"), *away, Text("")]


def _columns(name: str, split: Split) -> Fitted:
    table = Fitted(
        ["column", "kind", *_NUMBERS, _BARS_HEADER],
        title=f"Columns in {name}, all sites",
        left_out_first=("kind", "min", "max", _BARS_HEADER, "std"),
        words=["kind"],
    )
    for column, feature in split.features.items():
        cells = _numbers(feature, overall_of(feature))
        cells[1] = absence_words(feature, split, OVERALL)
        table.add_row(short(column), feature.kind, *cells, Histogram(feature.overall))
    return table


def _column(title: str, name: str, feature: Feature, rows: Rows) -> Iterator[RenderableType]:
    series = {OVERALL: overall_of(feature), **feature.by_site}
    yield Text(f"\n{title}, {feature.kind}", style="bold")
    for note in stand_outs(name, feature, rows):
        yield Text(f"- {note}")
    table = _moments("site", feature)
    yield from _fill(table, feature, series)
    yield table
    if silent := [site for site, each in feature.by_site.items() if each.count is None]:
        yield Text(f"- {OVERALL}: counted without {clean(listed(silent))}")
    asked = sorted({quantile.q for each in series.values() for quantile in each.quantiles})
    if asked:
        yield _quantiles(feature, series, asked)
    if feature.overall.categories:
        yield _categories(feature.overall.categories, series)
    for site, each in series.items():
        for line in each.withheld:
            if line.what != "everything":
                yield Text(f"- {clean(site)}: {clean(line.what)} withheld, {clean(line.reason)}")


def _groups(title: str, name: str, by: str, split: Split) -> Iterator[RenderableType]:
    """Yields a column by the column that was grouped by: of all sites and, of few groups, each."""
    found = {group: there.features[name] for group, there in split.groups.items()
             if name in there.features}  # fmt: skip
    if not found:
        return
    yield Text(f"\n{title}, by '{short(by)}'", style="bold")
    table = _moments("group, site", next(iter(found.values())))
    size = sum(1 + len(feature.by_site) for feature in found.values())
    for group, feature in list(found.items())[:_GROUP_ROWS]:
        sites = feature.by_site if size <= _GROUP_ROWS else {}
        series = {OVERALL: overall_of(feature), **sites}
        named = {f"{short(group, 30)}, {short(site, 30)}": each for site, each in series.items()}
        yield from _fill(table, feature, named)
    yield table
    if size > _GROUP_ROWS:
        more = f"{len(found) - _GROUP_ROWS} more groups, and " if len(found) > _GROUP_ROWS else ""
        yield Text(f"- {more}each site's numbers: in the HTML report")
    counted = {group: feature.overall for group, feature in found.items()}
    whole = split.features[name].overall.categories
    if whole and any(each.categories for each in counted.values()):
        yield _categories(whole, dict(list(counted.items())[:_CATEGORIES]))


def _correlations(split: Split, name: str | None = None) -> str:
    """Returns the strongest correlations over all sites, of one column or of any two."""
    found = split.correlation
    if found is None:
        return ""
    pairs = [
        (value, found.columns[column], found.columns[row])
        for row, values in enumerate(found.values)
        for column, value in enumerate(values[:row])
        if value is not None and name in (None, found.columns[row], found.columns[column])
    ]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    return ", ".join(f"{short(a)} and {short(b)} {value:.2f}" for value, a, b in pairs[:_PAIRS])


def _moments(first: str, feature: Feature) -> Fitted:
    """Returns an empty table of numbers; of categories there are no moments."""
    numbers = _NUMBERS[:2] if feature.kind in COUNTED else _NUMBERS
    spare = (_BARS_HEADER, "min", "max", "std")
    headers = [first, *numbers, _BARS_HEADER]
    return Fitted(headers, left_out_first=[each for each in spare if each in headers])


def _fill(table: Fitted, feature: Feature, series: Mapping[str, Summary]) -> Iterator[Text]:
    """Adds a row for each of a series; of those that release nothing, yields why."""
    for name, each in series.items():
        reason = keeps_back(each.withheld, "everything")
        if reason is not None and each.count is None:
            yield Text(f"- {clean(name)}: {WITHHELD}, {clean(reason)}")
            continue
        numbers = _numbers(feature, each)
        shown = numbers[:2] if feature.kind in COUNTED else numbers
        table.add_row(short(name), *shown, Histogram(each))


def _quantiles(feature: Feature, series: Mapping[str, Summary], asked: list[float]) -> Fitted:
    table = Fitted(["quantiles", *(f"{100 * q:g} %" for q in asked)])
    for site, each in series.items():
        found = {quantile.q: quantile for quantile in each.quantiles}
        cells = []
        for q in asked:
            quantile = found.get(q)
            cell = NONE if quantile is None else number(quantile.value, feature.kind)
            if quantile is not None and quantile.lower != quantile.upper:
                low, high = (number(v, feature.kind) for v in (quantile.lower, quantile.upper))
                cell += f" [{low}, {high}]"
            cells.append(cell)
        if found:
            table.add_row(short(site), *cells)
    return table


def _categories(whole: Mapping[str, float | None], series: Mapping[str, Summary]) -> Fitted:
    """Returns the rows a category, the fullest first: a column a site, or a group."""
    counted = {name: each.categories for name, each in series.items() if each.categories}
    table = Fitted(["category", *map(short, counted)])
    names = sorted(whole, key=lambda name: -(whole[name] or 0.0))
    for name in names[:_CATEGORIES]:
        cells = [
            WITHHELD if each.get(name, 0.0) is None else count(each.get(name, 0.0))
            for each in counted.values()
        ]
        table.add_row(short(name), *cells)
    if len(names) > _CATEGORIES:
        table.add_row(f"{len(names) - _CATEGORIES} more; --json FILE has all")
    return table


def _numbers(feature: Feature, each: Summary) -> list[str]:
    shown = {
        "count": count(each.count),
        "missing": percent(each.missing, total(each)),
        "mean": number(each.mean, feature.kind),
        "std": spread(each.std, feature.kind),
        "min": number(each.min, feature.kind),
        "max": number(each.max, feature.kind),
    }
    if feature.kind in COUNTED:
        shown |= dict.fromkeys(("mean", "std", "min", "max"), "")
    return [
        WITHHELD if cell == NONE and keeps_back(each.withheld, what) else cell
        for what, cell in shown.items()
    ]


def _drift(result: Statistics) -> list[RenderableType]:
    compared = result.compared
    if compared is None:
        return []
    past = [drift for drift in compared.drifts if drift.is_past_threshold]
    title = f"Since the run of {compared.created:%Y-%m-%d %H:%M}"
    notes = _lines(title, [*map(clean, compared.notes)]) or [Text(f"\n{title}", style="bold")]
    if not past:
        return [*notes, Text("- nothing is past a threshold")]
    headers = ("column", "split", "site", "PSI", "KS distance")
    table = Fitted(headers, words=("split", "site"))
    for drift in past[:_DRIFTS]:
        names = (drift.feature, drift.split, drift.site)
        table.add_row(*map(short, names), number(drift.psi), number(drift.ks))
    if len(past) > _DRIFTS:
        table.add_row(f"{len(past) - _DRIFTS} more")
    return [*notes, table]
