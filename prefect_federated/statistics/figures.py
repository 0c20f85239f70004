"""What the report's pictures show, as numbers: report.js draws them with plotly.

Here is decided what a picture holds and how much of it; colours, text and the switches are the
page's. Names are plain text; report.js escapes them.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from prefect_federated.adapters.colours import BRIGHT, COLOURS
from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.absence import absence, absence_at, absence_words, rows_of
from prefect_federated.statistics.schema import OVERALL, Correlation, Split, Summary
from prefect_federated.statistics.wording import short

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
COUNTED: tuple[Kind, ...] = ("categorical", "boolean")
"""Kinds of which the picture is bars; of the others, it is lines."""
CATEGORIES_SHOWN = 16
ROWS_SHOWN = 40
"""Columns in the picture of missing values, and sites at most."""
CORRELATIONS_SHOWN = 150
_LINE_PX, _CELL_PX = 26, 30
_DIGITS = 7

Figure: TypeAlias = dict[str, object]
"""JSON, as report.js takes it."""

Series: TypeAlias = Mapping[str, Summary]
"""Name of a site or a group -> the numbers."""


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns name -> colour and dash: no two of 30 names have both alike."""
    return {
        name: (BRIGHT[place % len(BRIGHT)], DASHES[place // len(BRIGHT) % len(DASHES)])
        if len(names) > len(BRIGHT)
        else (BRIGHT[place], DASHES[place % len(DASHES)])
        for place, name in enumerate(names)
    }


def distribution(
    kind: Kind, overall: Summary | None, series: Series, look: Mapping[str, tuple[str, str]]
) -> Figure | None:
    """Returns the picture of how a column's values lie; None if nobody released that.

    Args:
        kind: What the column holds.
        overall: All sites together; None to leave them out.
        series: The sites, or the groups.
        look: Colour and dash of each.
    """
    shown: dict[str, Summary] = {} if overall is None else {OVERALL: overall}
    shown.update(series)
    if kind in COUNTED:
        bars = {name: counts for name, each in shown.items() if (counts := _categories(kind, each))}
        return _bars(bars, shown, look) if bars else None
    lines = {name: each for name, each in shown.items() if each.histogram is not None}
    if not lines:
        return None
    return {
        "type": "histogram",
        "datetime": kind == "datetime",
        "height": 300,
        "series": [_line(name, each, look) for name, each in lines.items()],
    }


def of_another_kind(kind: Kind, series: Series) -> list[str]:
    """Returns the sites that are not in a column's picture, as the column's kind differs there.

    Args:
        kind: What the column holds at most sites, of which the picture is.
        series: The sites.
    """
    if kind in COUNTED:
        return [name for name, each in series.items() if each.histogram is not None]
    return [name for name, each in series.items() if each.categories is not None]


def _line(name: str, each: Summary, look: Mapping[str, tuple[str, str]]) -> Figure:
    assert each.histogram is not None
    return {
        **_style(name, look),
        "edges": [_rounded(edge) for edge in each.histogram.edges],
        "counts": [None if c is None else _rounded(c) for c in each.histogram.counts],
        "total": max(sum(c or 0.0 for c in each.histogram.counts), each.count or 0.0),
    }


def _bars(
    bars: Mapping[str, Mapping[str, float | None]],
    shown: Series,
    look: Mapping[str, tuple[str, str]],
) -> Figure:
    """Returns bars: the fullest categories by name, the rest together."""
    totals: dict[str, float] = {}
    for counts in bars.values():
        for name, size in counts.items():
            totals[name] = max(totals.get(name, 0.0), size or 0.0)
    is_few = len(totals) <= CATEGORIES_SHOWN
    named = list(totals) if is_few else sorted(totals, key=lambda name: -totals[name])
    named = named[:CATEGORIES_SHOWN]
    rest = f"{len(totals) - len(named)} other categories"
    series: list[object] = []
    for name, counts in bars.items():
        sizes: list[object] = [_rounded_or_none(counts.get(each, 0.0)) for each in named]
        if not is_few:
            sizes.append(sum(size or 0.0 for each, size in counts.items() if each not in named))
        whole = max(sum(size or 0.0 for size in counts.values()), shown[name].count or 0.0)
        series.append({**_style(name, look), "counts": sizes, "total": whole})
    names = [short(each, 40) for each in named] + ([] if is_few else [rest])
    return {
        "type": "bars",
        "height": 110 + len(names) * min(16 + 8 * len(bars), 90),
        "names": names,
        "series": series,
    }


def _categories(kind: Kind, each: Summary) -> Mapping[str, float | None] | None:
    if each.categories is not None:
        rest = {"other categories": each.other_categories} if each.other_categories else {}
        return {**each.categories, **rest}
    if each.histogram is not None:  # numbers, at a site where the column's kind differs
        return None
    if kind == "boolean" and each.count is not None and each.mean is not None:
        true = min(max(each.count * each.mean, 0.0), each.count)
        return {"false": each.count - true, "true": true}
    return None


def missing(split: Split, sites: Sequence[str]) -> Figure:
    """Returns the picture of missing values: a row a column of the data, a column a site.

    Of many columns, those with most missing are shown.
    """
    names = most_missing(split)[:ROWS_SHOWN]
    sites = [*sites[:ROWS_SHOWN], OVERALL]
    values: list[object] = []
    texts: list[object] = []
    for name in names:
        feature = split.features[name]
        found = [absence_at(feature, split, site) for site in sites]
        values.append([None if each is None else round(each.share, 4) for each in found])
        texts.append(
            [
                "" if each is not None and each.is_exact else absence_words(feature, split, site)
                for each, site in zip(found, sites, strict=True)
            ]
        )
    return {
        "type": "missing",
        "height": 130 + _LINE_PX * len(names),
        "rows": [short(name, 24) for name in names],
        "columns": [short(site, 24) for site in sites],
        "values": values,
        "texts": texts,
    }


def most_missing(split: Split) -> list[str]:
    """Returns the columns in their own order or, of many, those with most missing first."""
    names = list(split.features)
    if len(names) <= ROWS_SHOWN:
        return names
    rows = rows_of(split)

    def share(name: str) -> float:
        sites = split.features[name].by_site.items()
        found = [each.share for site, that in sites if (each := absence(that, rows.get(site)))]
        return -max(found, default=0.0)

    return sorted(names, key=share)


def correlations(found: Mapping[str, Correlation]) -> Figure | None:
    """Returns the picture of correlation matrices, one of which is seen at a time; None if empty.

    Args:
        found: Name of a site, or "all sites" -> its matrix.
    """
    known = {name: each for name, each in found.items() if each.columns}
    if not known:
        return None
    size = min(max(len(each.columns) for each in known.values()), CORRELATIONS_SHOWN)
    return {
        "type": "correlation",
        "height": 150 + max(min(_CELL_PX * size, 700), 120),
        "choices": [
            {
                "name": name,
                "names": [short(column, 24) for column in each.columns[:CORRELATIONS_SHOWN]],
                "values": [
                    [None if v is None else round(v, 3) for v in row[:CORRELATIONS_SHOWN]]
                    for row in each.values[:CORRELATIONS_SHOWN]
                ],
            }
            for name, each in known.items()
        ],
    }


def _style(name: str, look: Mapping[str, tuple[str, str]]) -> Figure:
    colour, dash = look.get(name, (COLOURS[-1], "solid"))
    return {"name": name, "colour": colour, "dash": dash, "all": name == OVERALL}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if abs(value) < 1e6 else value


def _rounded_or_none(value: float | None) -> float | None:
    return None if value is None else _rounded(value)
