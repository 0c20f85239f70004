"""The result as markdown, for an artifact in the Prefect UI: notes, table, pictures; bounded."""

import base64
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_federated.adapters.distribution_picture import Panel, distributions_png, missing_png
from prefect_federated.statistics.absence import absence_at, absence_words
from prefect_federated.statistics.distances import counts_of
from prefect_federated.statistics.figures import COUNTED, most_missing, of_another_kind
from prefect_federated.statistics.report_page import result_sites
from prefect_federated.statistics.schema import OVERALL, Feature, Split, Statistics, Summary
from prefect_federated.statistics.stand_outs import all_stand_outs
from prefect_federated.statistics.wording import (
    NONE,
    WITHHELD,
    clean,
    count,
    keeps_back,
    listed,
    number,
    overall_of,
    percent,
    short,
    spread,
    weighty_first,
)

LINES = 20
"""Notes, and withheld lines, at most."""
ROWS = 200
"""Rows of the table at most."""
PANELS = 12
"""Columns with a picture at most: those that stand out first."""
SHOWN = 20
"""Columns and sites at most in the picture of missing values."""
_SPECIAL = re.compile(r"[\\`*_\[\]#|~$]")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_CATEGORIES = 8


def summary_markdown(result: Statistics, report: str = "the report") -> str:
    """Returns the summary as markdown: under 500 kB, however many columns and sites there are.

    Args:
        result: What a statistics job came to.
        report: What holds all that is left out here, as markdown: a link, or words.
    """
    found = all_stand_outs(result)
    parts = [f"# Statistics of {plain(result.dataset)}"]
    away = [
        f"{plain(site)}: {state.state}{', ' if state.reason else ''}{plain(state.reason)}"
        for site, state in result.sites.items()
        if state.state != "answered"
    ]
    answered = len(result.sites) - len(away)
    parts.append(f"{answered} of {len(result.sites)} sites answered. More is in {report}.")
    parts += [plain(note) for note in result.notes[:LINES]]
    parts += _lines("Not there", away, report)
    parts += _lines("What stands out", [_note(each.text, each.splits) for each in found], report)
    parts += _lines(
        "What is withheld", [plain(line) for line in weighty_first(result.withheld)], report
    )
    parts += _drift(result, report)
    parts += _table(result, report)
    first = [each.feature for each in found]
    if result.splits:  # of the others, there are pictures in the report
        name, split = max(result.splits.items(), key=lambda each: each[1].rows or 0.0)
        sites = [site for site in result_sites(result) if site in split.sites]
        parts += _pictures(name, split, [*first, *split.features], sites)
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Returns a name or a sentence so that markdown and HTML take it as it is, on one line.

    >>> print(plain("a|b <script>\\n# [x](y), 11 rows < minimum 20"))
    a\\|b &lt;script>�\\# \\[x\\](y), 11 rows < minimum 20
    """
    safe = _TAG.sub("&lt;", short(text, 400).replace("&", "&amp;"))
    return _SPECIAL.sub(r"\\\g<0>", safe)


def _note(text: str, splits: Sequence[str]) -> str:
    return f"{plain(text)} ({plain(', '.join(splits))})" if splits else plain(text)


def _lines(title: str, lines: Sequence[str], report: str) -> list[str]:
    if not lines:
        return []
    more = [f"- {len(lines) - LINES} more in {report}"] if len(lines) > LINES else []
    return [f"## {title}", "\n".join([*(f"- {line}" for line in lines[:LINES]), *more])]


def _drift(result: Statistics, report: str) -> list[str]:
    compared = result.compared
    if compared is None:
        return []
    past = [drift for drift in compared.drifts if drift.is_past_threshold]
    lines = [
        f"{plain(drift.feature)} at {plain(drift.site)}, {plain(drift.split)}: PSI "
        f"{number(drift.psi)}, Kolmogorov-Smirnov distance {number(drift.ks)}"
        for drift in past
    ] or ["Nothing is past a threshold."]
    lines += [plain(note) for note in compared.notes]
    return _lines(f"Since the run of {compared.created:%Y-%m-%d %H:%M}", lines, report)


def _table(result: Statistics, report: str) -> list[str]:
    header = "| split | column | site | values | missing | mean | std | min | max |"
    lines = [header, f"|{' --- |' * 3}{' ---: |' * 6}"]
    every = [
        (name, column, site, feature, each, absence_words(feature, split, site))
        for name, split in result.splits.items()
        for column, feature in split.features.items()
        for site, each in {OVERALL: overall_of(feature), **feature.by_site}.items()
    ]
    for name, column, site, feature, each, gone in every[:ROWS]:
        cells = [plain(short(name, 40)), plain(short(column, 40)), plain(short(site, 40))]
        lines.append(f"| {' | '.join([*cells, *_cells(feature, each, gone)])} |")
    parts = ["## Numbers", "\n".join(lines)]
    if len(every) > ROWS:
        parts.append(f"{len(every) - ROWS:,} more rows are in {report}.")
    return parts


def _cells(feature: Feature, each: Summary, gone: str) -> list[str]:
    shown = {
        "count": count(each.count),
        "missing": gone,
        "mean": number(each.mean, feature.kind),
        "std": spread(each.std, feature.kind),
        "min": number(each.min, feature.kind),
        "max": number(each.max, feature.kind),
    }
    if feature.kind in ("categorical", "boolean") and each.categories:
        most = max(each.categories, key=lambda name: (each.categories or {}).get(name) or 0.0)
        words = f"{percent(each.categories[most], each.count)} {plain(short(most, 30))}"
        shown["mean"] = words
        shown["std"] = shown["min"] = shown["max"] = ""
    if each.count is None and (why := keeps_back(each.withheld, "everything")):
        cell = "" if gone == WITHHELD else gone
        return [f"{WITHHELD}, {plain(why)}", cell, *[""] * 4]
    return [
        WITHHELD if cell == NONE and keeps_back(each.withheld, what) else cell
        for what, cell in shown.items()
    ]


def _pictures(name: str, split: Split, order: Sequence[str], sites: Sequence[str]) -> list[str]:
    columns, headers = most_missing(split)[:SHOWN], [*sites[:SHOWN], OVERALL]
    found = [[absence_at(split.features[c], split, site) for site in headers] for c in columns]
    values = np.array(
        [[np.nan if each is None else each.share for each in row] for row in found], float
    ).reshape(len(columns), len(headers))
    picture = missing_png([clean(c) for c in columns], [clean(s) for s in headers], values)
    where = plain(name)
    parts = [f"## Pictures of {where}", _image(f"share of missing values in {where}", picture)]
    panels: list[Panel] = []
    for column in dict.fromkeys(column for column in order if column in split.features):
        panel = _panel(column, split.features[column])
        if panel is not None and len(panels) < PANELS:
            panels.append(panel)
    if panels:
        picture = distributions_png(panels, sites, OVERALL)
        words = f"how the values of {len(panels)} columns in {where} lie at the sites"
        parts.append(_image(words, picture))
    apart = [
        f"{plain(column)} at {plain(listed(sites))}"
        for column, feature in split.features.items()
        if (sites := of_another_kind(feature.kind, feature.by_site))
    ]
    if apart:
        parts.append(f"Not in the pictures, as the column's kind differs there: {listed(apart)}.")
    return parts


def _panel(column: str, feature: Feature) -> Panel | None:
    series = {OVERALL: feature.overall, **feature.by_site}
    counted = {name: each.categories for name, each in series.items() if each.categories}
    if feature.kind in COUNTED:
        if not counted:
            return None
        fullest = counted.get(OVERALL) or next(iter(counted.values()))
        names = sorted(fullest, key=lambda name: -(fullest[name] or 0.0))[:_CATEGORIES]
        heights = {
            name: _shares(np.array([each.get(c) or 0.0 for c in names], float), series[name].count)
            for name, each in counted.items()
        }
        return Panel(clean(column), [], [clean(name) for name in names], heights, {})
    there = {name: h for name, each in series.items() if (h := each.histogram) is not None}
    if not there:
        return None
    edges = next(iter(there.values())).edges
    return Panel(
        clean(column),
        edges,
        [],
        {name: _shares(counts_of(h, series[name].count), None) for name, h in there.items()},
        {name: h.edges for name, h in there.items() if h.edges != edges},
        (number(edges[0], feature.kind), number(edges[-1], feature.kind)),
    )


def _shares(counts: NDArray[np.float64], whole: float | None) -> list[float]:
    size = whole or float(counts.sum())
    shares: list[float] = (counts / size if size > 0 else counts).tolist()
    return shares


def _image(words: str, picture: bytes) -> str:
    return f"![{words}](data:image/png;base64,{base64.b64encode(picture).decode()})"
