"""Tables of the report, as HTML: each has a caption, and headers that say what they head.

Every text is escaped here; what these functions take is plain text, unless it is `Markup`.
"""

import html
import re
from collections.abc import Mapping, Sequence

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.schema import Correlation, Histogram, Summary
from prefect_federated.statistics.wording import (
    NONE,
    WITHHELD,
    clean,
    count,
    keeps_back,
    number,
    percent,
    short,
    spread,
    total,
)

CELLS = 2_500
"""Cells of a correlation matrix up to which it is a table; beyond, its strongest pairs are."""
_PAIRS = 200
_NAMED = 200
_NUMBER = re.compile(r"[<>]? ?-?[\d,.]+(e[+-]?\d+)?( %)?( \[.*\])?")


class Markup(str):
    """HTML that is escaped where it has to be."""

    __slots__ = ()


def text(words: str) -> Markup:
    """Returns plain text as HTML, also within an attribute's quotes."""
    return Markup(html.escape(clean(words)))


def table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, key: str
) -> Markup:
    """Returns a table that scrolls by itself where it is too wide; the first column heads the rows.

    Args:
        caption: What it shows.
        headers: One a column.
        rows: Cells of each; a row of fewer cells than headers has its last one stretched.
        key: Unique in the page.
    """
    caption_id = f"c-{html.escape(key)}"
    full = [row for row in rows if len(row) == len(headers)]
    classes = [
        ' class="n"' if place and all(map(_is_number, cells)) else ""
        for place, cells in enumerate(zip(*full, strict=True))
    ] or [""] * len(headers)
    parts = [
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{caption_id}"><table>'
        f'<caption id="{caption_id}"><span>{text(caption)}</span></caption><thead><tr>',
        *(
            f'<th scope="col"{kind}>{_markup(header)}</th>'
            for header, kind in zip(headers, classes, strict=True)
        ),
        "</tr></thead><tbody>",
    ]
    for row in rows:
        parts.append(f'<tr><th scope="row">{_markup(row[0])}</th>')
        last = len(row) - 1
        for place, cell in enumerate(row[1:], start=1):
            span = f' colspan="{len(headers) - last}"' if place == last < len(headers) - 1 else ""
            kind = "" if span else classes[place]
            parts.append(f"<td{span}{kind}>{_markup(cell)}</td>")
        parts.append("</tr>")
    parts.append("</tbody></table></div>")
    return Markup("".join(parts))


def moments(
    caption: str, kind: Kind, series: Mapping[str, Summary], key: str, first: str = "site"
) -> Markup:
    """Returns the table of counts and moments, a row a site."""
    has_infinite = any(each.infinite for each in series.values())
    headers = [first, "values", "missing", "missing, share"]
    headers += ["infinite"] if has_infinite else []
    if kind != "categorical":
        headers += ["mean", "std", "min", "max", "sum", "variance"]
    rows = []
    for name, each in series.items():
        reason = keeps_back(each.withheld, "everything")
        if reason is not None and each.count is None:
            rows.append([name, f"{WITHHELD}, {reason}"])
            continue
        row = [
            name,
            _known(each, "count", count(each.count)),
            _known(each, "missing", count(each.missing)),
            _known(each, "missing", percent(each.missing, total(each))),
        ]
        if has_infinite:
            row.append(_known(each, "infinite", count(each.infinite)))
        if kind != "categorical":
            row += [
                _known(each, "mean", number(each.mean, kind)),
                _known(each, "std", spread(each.std, kind)),
                _known(each, "min", number(each.min, kind)),
                _known(each, "max", number(each.max, kind)),
                _known(each, "sum", number(each.sum)),
                _known(each, "variance", number(each.variance)),
            ]
        rows.append(row)
    return table(caption, headers, rows, key=key)


def quantiles(caption: str, kind: Kind, series: Mapping[str, Summary], key: str) -> Markup | None:
    """Returns the table of quantiles with their error bounds; None if nobody released any."""
    asked = sorted({quantile.q for each in series.values() for quantile in each.quantiles})
    if not asked:
        return None
    rows = []
    for name, each in series.items():
        if not each.quantiles:
            if why := keeps_back(each.withheld, "quantiles"):
                rows.append([name, f"{WITHHELD}, {why}"])
            continue
        found = {quantile.q: quantile for quantile in each.quantiles}
        cells = [name]
        for q in asked:
            quantile = found.get(q)
            if quantile is None or quantile.value is None:
                cells.append(_known(each, "quantiles", NONE))
                continue
            cell = number(quantile.value, kind)
            bounds = (quantile.lower, quantile.upper)
            if bounds != (None, None) and bounds != (quantile.value, quantile.value):
                cell += f" [{number(quantile.lower, kind)}, {number(quantile.upper, kind)}]"
            cells.append(cell)
        rows.append(cells)
    headers = ["site", *(f"{100 * q:g} %" for q in asked)]
    return table(caption, headers, rows, key=key) if rows else None


def bins(caption: str, kind: Kind, series: Mapping[str, Summary], key: str) -> Markup | None:
    """Returns the table that a picture of histograms has: a row a bin, a column a site."""
    there = {name: h for name, each in series.items() if (h := each.histogram) is not None}
    alike: dict[tuple[float, ...], dict[str, Histogram]] = {}
    for name, histogram in there.items():
        alike.setdefault(tuple(histogram.edges), {})[name] = histogram
    parts = []
    for place, (edges, those) in enumerate(alike.items()):
        labels = [number(edge, kind) for edge in edges]
        columns = [[_bin(c) for c in histogram.counts] for histogram in those.values()]
        rows = [
            [f"{low} to {high}", *cells]
            for low, high, *cells in zip(labels, labels[1:], *columns, strict=False)
        ]
        names = "" if len(alike) == 1 else f" ({', '.join(those)})"
        parts.append(table(f"{caption}{names}", ["from, to", *those], rows, key=f"{key}-{place}"))
    return Markup("".join(parts)) if parts else None


def categories(caption: str, series: Mapping[str, Mapping[str, float | None]], key: str) -> Markup:
    """Returns the table that a picture of bars has: a row a category, a column a site."""
    names = list(dict.fromkeys(name for counts in series.values() for name in counts))
    rows = [
        [
            short(name),
            *(_bin(counts[name]) if name in counts else "0" for counts in series.values()),
        ]
        for name in names[:_NAMED]
    ]
    if len(names) > _NAMED:
        caption += f" (the first {_NAMED} of {len(names)} categories; the JSON has all)"
    return table(caption, ["category", *series], rows, key=key)


def correlation(caption: str, found: Correlation, key: str) -> Markup:
    """Returns the table of a correlation matrix or, of a large one, of its strongest pairs."""
    names = found.columns
    if len(names) ** 2 <= CELLS:
        rows = [
            [name, *(f"{v:.2f}" if v is not None else NONE for v in values)]
            for name, values in zip(names, found.values, strict=True)
        ]
        return table(caption, ["column", *names], rows, key=key)
    pairs = [
        (value, names[row], names[column])
        for row, values in enumerate(found.values)
        for column, value in enumerate(values[:row])
        if value is not None
    ]
    strongest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:_PAIRS]
    rows = [[first, second, f"{value:.2f}"] for value, first, second in strongest]
    caption += f": the {len(rows)} strongest of {len(pairs):,} pairs; the JSON has all"
    return table(caption, ["column", "and", "correlation"], rows, key=key)


def _known(each: Summary, what: str, shown: str) -> str:
    return WITHHELD if shown == NONE and keeps_back(each.withheld, what) else shown


def _bin(size: float | None) -> str:
    return WITHHELD if size is None else count(size)


def _is_number(cell: str) -> bool:
    return cell in (NONE, WITHHELD) or _NUMBER.fullmatch(cell) is not None


def _markup(cell: str) -> str:
    return cell if isinstance(cell, Markup) else text(cell)
