"""The report's first parts: what stands out, what is withheld, sites, what is missing, drift."""

import re

from prefect_federated.statistics.absence import absence_at, absence_words
from prefect_federated.statistics.figures import (
    CORRELATIONS_SHOWN,
    ROWS_SHOWN,
    correlations,
    missing,
)
from prefect_federated.statistics.html_tables import Markup, correlation, table, text
from prefect_federated.statistics.report_page import Page, Section, unfolded
from prefect_federated.statistics.schema import OVERALL, Split
from prefect_federated.statistics.stand_outs import StandOut, all_stand_outs
from prefect_federated.statistics.wording import (
    NONE,
    WITHHELD,
    count,
    listed,
    not_there,
    percent,
    short,
    weighty_first,
)

NOTES_SHOWN = 8
"""Notes that are open; the others are folded."""
_DRIFTS_SHOWN = 200
_LINES = 8
_GAPS = (
    "Percent; with a question mark, the middle of what is possible. In empty cells: w, withheld; "
    "n, none."
)


def notes_section(page: Page) -> Section:
    """Returns what a reader should see first."""
    found = all_stand_outs(page.result)
    parts = [f'<p class="note">{text(note)}</p>' for note in page.result.notes]
    if not found:
        parts.append("<p>No site's values differ much from the others'.</p>")
    parts.append(_list(page, found[:NOTES_SHOWN]))
    if more := found[NOTES_SHOWN:]:
        parts.append(
            f"<details><summary>{len(more)} more, that differ less</summary>{_list(page, more)}"
            "</details>"
        )
    return Section("notes", "What stands out", Markup("".join(parts)))


def _list(page: Page, found: list[StandOut]) -> str:
    items = []
    for each in found:
        name = short(each.feature)
        words = each.text.removeprefix(name)
        where = (
            f' <span class="where">{text(", ".join(each.splits))}</span>'
            if len(page.result.splits) > 1
            else ""
        )
        items.append(
            f'<li><a href="#{page.anchor(each.feature)}">{text(name)}</a>{text(words)}{where}</li>'
        )
    return f'<ul class="notes">{"".join(items)}</ul>' if items else ""


def withheld_section(page: Page) -> Section:
    """Returns what sites keep back, each with its reason."""
    lines = weighty_first(page.result.withheld)
    if not lines:
        return Section("withheld", "What is withheld", Markup("<p>Nothing: every site released "
                       "all that was asked for.</p>"))  # fmt: skip
    return Section("withheld", "What is withheld", unfolded(lines, _LINES))


def sites_section(page: Page) -> Section:
    """Returns the overview a site: rows, missing, withheld, and who is not there."""
    result = page.result
    headers = ["site", "state"]
    for split in result.splits:
        headers += [f"{split}: rows", f"{split}: missing"]
    headers += ["columns it lacks", "withheld"]
    rows = []
    for site in page.sites:
        state = result.sites.get(site)
        words: str = "answered" if state is None else state.state
        if state is not None and state.released is not None:
            words += f" with numbers of {state.released:%Y-%m-%d %H:%M}"
        if state is not None and state.state != "answered":
            rows.append([site, f"{words}: {state.reason}" if state.reason else words])
            continue
        if state is not None and state.reason:
            words += f": {state.reason}"
        row = [site, words]
        for there in result.splits.values():
            row += [_rows(there, site), _missing(there, site)]
        lacks = {
            name
            for there in result.splits.values()
            for name, feature in there.features.items()
            if site in feature.without
        }
        lines = [line for line in result.withheld if line.startswith((f"{site}:", f"{site},"))]
        reasons = {
            w.reason
            for there in result.splits.values()
            if site in there.sites
            for w in there.sites[site].withheld
        }
        kept = listed(sorted(reasons)) if reasons else _above(len(lines))
        rows.append([*row, listed(sorted(lacks)), kept])
    row = [OVERALL, ""]
    for there in result.splits.values():
        row += [count(there.rows), _missing(there, OVERALL)]
    rows.append([*row, "", ""])
    answered = sum(state.state == "answered" for state in result.sites.values())
    absent = [
        not_there(site, state) for site, state in result.sites.items() if state.state != "answered"
    ]
    start = f"{answered} of {len(result.sites)} sites answered."
    if absent:
        start += f" {'; '.join(absent)}."
    shown = table("Sites: rows, and the share of all values that are missing", headers, rows,
                  key=page.key())  # fmt: skip
    return Section("sites", "Sites", Markup(f"<p>{text(start)}</p>{shown}"))


def _above(lines: int) -> str:
    return f"{lines} {'line' if lines == 1 else 'lines'} above" if lines else ""


def _rows(split: Split, site: str) -> str:
    there = split.sites.get(site)
    if there is None:
        return "no such split"
    return WITHHELD if there.rows is None and there.withheld else count(there.rows)


def _missing(split: Split, site: str) -> str:
    """Returns the share of all of a site's values that are missing."""
    found = [absence_at(feature, split, site) for feature in split.features.values()]
    known = [each for each in found if each is not None]
    if not known and site in split.sites and split.sites[site].withheld:
        return WITHHELD
    return percent(sum(each.share * each.rows for each in known), sum(each.rows for each in known))


def missing_section(page: Page) -> Section:
    """Returns the picture of missing values, a row a column and a column a site."""
    parts = {}
    for name, split in page.result.splits.items():
        names = list(split.features)
        headers = ["column", *page.answering, OVERALL]
        rows = [
            [column, *(absence_words(split.features[column], split, s) for s in headers[1:])]
            for column in names
        ]
        words = f"missing values in {name}"
        if len(names) > ROWS_SHOWN:
            words += f", the {ROWS_SHOWN} of {len(names)} columns with most of them"
        shown = table(f"Share of missing values in {name}", headers, rows, key=page.key())
        figure = missing(split, page.answering)
        picture = page.picture(figure, f"{words}. {_most_missing(split)}", [shown])
        is_gappy = any(re.search("[a-z]", cell) for row in rows for cell in row[1:])
        gaps = f'<p class="small">{_GAPS}</p>'
        parts[name] = Markup(picture + gaps if is_gappy else picture)
    return Section("missing", "Missing values", page.by_split(parts))


def _most_missing(split: Split) -> str:
    found = [
        (each.share, name, each.words())
        for name, feature in split.features.items()
        if (each := absence_at(feature, split, OVERALL)) and each.high
    ]
    most = [f"{short(name)} {words}" for _, name, words in sorted(found, reverse=True)[:3]]
    return f"Most at all sites: {', '.join(most)}." if most else "No value is missing."


def drift_section(page: Page) -> Section | None:
    """Returns the comparison with the run before; None if there is none."""
    compared = page.result.compared
    if compared is None:
        return None
    past = sum(drift.is_past_threshold for drift in compared.drifts)
    start = (
        f"Compared with the run {compared.run} of {compared.created:%Y-%m-%d %H:%M}: {past} of "
        f"{len(compared.drifts)} comparisons are past a threshold (PSI {compared.psi_threshold:g}, "
        f"Kolmogorov-Smirnov distance {compared.ks_threshold:g}). PSI counts missing values as a "
        "bin of their own; the distance is of the values alone."
    )
    rows = [
        [
            drift.split,
            short(drift.feature),
            drift.site,
            NONE if drift.psi is None else f"{drift.psi:.3f}",
            NONE if drift.ks is None else f"{drift.ks:.3f}",
            Markup('<strong class="past">past threshold</strong>')
            if drift.is_past_threshold
            else "",
        ]
        for drift in compared.drifts[:_DRIFTS_SHOWN]
    ]
    caption = "The largest changes since the run before"
    if len(compared.drifts) > _DRIFTS_SHOWN:
        caption += f" ({_DRIFTS_SHOWN} of {len(compared.drifts)}; the JSON has all)"
    headers = ["split", "column", "site", "PSI", "KS distance", "judged"]
    top = [
        row for row, drift in zip(rows, compared.drifts, strict=False) if drift.is_past_threshold
    ]
    shown = table("Past a threshold", headers, top, key=page.key()) if top else Markup("")
    every = table(caption, headers, rows, key=page.key())
    body = (
        f"<p>{text(start)}</p>{shown}"
        + unfolded(compared.notes[:_DRIFTS_SHOWN], _LINES)
        + f"<details><summary>All comparisons</summary>{every}</details>"
    )
    return Section("drift", "Since the last run", Markup(body))


def correlation_section(page: Page) -> Section | None:
    """Returns the correlation matrices; None if there are none."""
    parts = {}
    for name, split in page.result.splits.items():
        found = {} if split.correlation is None else {OVERALL: split.correlation}
        found |= split.correlation_by_site
        if not found:
            continue
        tables = [
            correlation(f"Correlations in {name}, {site}", each, page.key())
            for site, each in found.items()
            if each.columns
        ]
        kept = [
            f"{site}: {line.what} withheld, {line.reason}"
            for site, each in found.items()
            for line in each.withheld
        ]
        size = len(next(iter(found.values())).columns)
        words = f"correlations in {name}"
        if size > CORRELATIONS_SHOWN:
            words += f", of the first {CORRELATIONS_SHOWN} of {size} columns"
        picture = page.picture(correlations(found), f"{words}. {_strongest(split)}", tables)
        parts[name] = Markup(picture + unfolded(list(dict.fromkeys(kept)), 3))
    if not parts:
        return None
    return Section("correlation", "Correlations", page.by_split(parts))


def _strongest(split: Split) -> str:
    found = split.correlation
    if found is None:
        return ""
    pairs = [
        (abs(value), value, found.columns[row], found.columns[column])
        for row, values in enumerate(found.values)
        for column, value in enumerate(values[:row])
        if value is not None
    ]
    most = [f"{short(a)} and {short(b)} {value:.2f}" for _, value, a, b in sorted(pairs)[:-4:-1]]
    return f"Strongest: {', '.join(most)}." if most else ""
