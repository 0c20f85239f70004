"""The report's part on each column: how its values lie, at each site and over all of them."""

from collections.abc import Mapping

from prefect_federated.statistics.absence import rows_of
from prefect_federated.statistics.figures import distribution, of_another_kind, styles
from prefect_federated.statistics.html_tables import (
    Markup,
    bins,
    categories,
    moments,
    quantiles,
    text,
)
from prefect_federated.statistics.report_page import Page, Section, unfolded
from prefect_federated.statistics.schema import OVERALL, Feature, Split, Summary
from prefect_federated.statistics.stand_outs import stand_outs
from prefect_federated.statistics.wording import (
    listed,
    number,
    overall_of,
    percent,
    short,
    total,
    weighty_first,
)

_FILTERED = 8
"""Columns from which there is a field to find one."""
_NAMED_IN_WORDS = 6
_LINES = 4
_NOISED = "Smallest and largest values are noised, unless a site's own file allows exact ones."


def features_section(page: Page) -> Section:
    """Returns all columns, with the switches of their pictures."""
    articles = "".join(_article(page, name) for name in page.features)
    links = ", ".join(
        f'<a href="#{page.anchor(name)}">{text(short(name, 30))}</a>' for name in page.features
    )
    count = len(page.features)
    return Section(
        "features",
        "Columns",
        Markup(
            f'<p class="small">{_NOISED}</p>{_controls(page)}'
            "<noscript><p>Pictures need JavaScript; the tables do not.</p>"
            f"</noscript><details{' open' if count <= 40 else ''}><summary>All {count} columns"
            f'</summary><p class="links">{links}</p></details>{articles}'
        ),
    )


def _controls(page: Page) -> str:
    """Returns the switches: which split, counts or shares, which sites, which columns."""
    splits = "".join(
        f'<label><input type="radio" name="split" value="{place}"{" checked" * (place == 0)}> '
        f"{text(split)}</label>"
        for place, split in enumerate(page.result.splits)
    )
    sites = "".join(_site_switch(name, page) for name in [OVERALL, *page.answering])
    find = (
        '<label class="find">Find a column <input type="search" id="find" autocomplete="off">'
        ' <span id="found" role="status"></span></label>'
        if len(page.features) >= _FILTERED
        else ""
    )
    is_many = len(page.result.splits) > 1
    return (
        '<details class="controls" id="controls" open><summary>Switches of the pictures</summary>'
        "<form>"
        + (f"<fieldset><legend>Split</legend>{splits}</fieldset>" if is_many else "")
        + "<fieldset><legend>Heights</legend>"
        '<label><input type="radio" name="heights" value="share" checked> share of each site'
        "</label>"
        '<label><input type="radio" name="heights" value="count"> counts</label></fieldset>'
        f'{find}<fieldset class="sites"><legend>Sites</legend>{sites}</fieldset></form></details>'
    )


def _site_switch(name: str, page: Page) -> str:
    colour, dash = page.look.get(name, ("", "solid"))
    strokes = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "12 4"}
    stroke = f'style="stroke:{colour}" ' if colour else 'class="all" '
    swatch = (
        '<svg width="28" height="8" aria-hidden="true"><line x1="1" y1="4" x2="27" y2="4" '
        f'{stroke}stroke-width="3" stroke-dasharray="{strokes[dash]}"/></svg>'
    )
    return (
        f'<label><input type="checkbox" name="site" value="{text(name)}" checked> {swatch} '
        f"{text(short(name, 30))}</label>"
    )


def _article(page: Page, name: str) -> str:
    parts = {
        split: _in_split(page, name, split, there)
        for split, there in page.result.splits.items()
        if name in there.features
    }
    kinds = dict.fromkeys(
        there.features[name].kind for there in page.result.splits.values() if name in there.features
    )
    key = page.anchor(name)
    return (
        f'<article aria-labelledby="{key}" data-name="{text(name)}">'
        f'<h3 id="{key}">{text(short(name, 80))} <span class="where">{text(", ".join(kinds))}'
        f"</span></h3>{page.by_split(parts, 'h4')}</article>"
    )


def _in_split(page: Page, name: str, split: str, there: Split) -> Markup:
    feature = there.features[name]
    series = {site: feature.by_site[site] for site in page.answering if site in feature.by_site}
    everything = {OVERALL: overall_of(feature), **series}
    notes = feature.stands_out or stand_outs(name, feature, rows_of(there))
    where = f"{short(name)} in {split}"
    bars = {n: counts for n, each in everything.items() if (counts := each.categories) is not None}
    tables = [
        moments(f"Counts and moments of {where}", feature.kind, everything, page.key()),
        quantiles(
            f"Quantiles of {where}, and between which values each lies",
            feature.kind, everything, page.key(),
        ),
        bins(f"Values of {where}, a bin", feature.kind, everything, page.key()),
        categories(f"Rows of {where}, a category", bins_of(bars), page.key()) if bars else None,
    ]  # fmt: skip
    picture = page.picture(
        distribution(feature.kind, feature.overall, series, page.look),
        f"{where}. {_words(feature, series)}",
        tables,
    )
    listed_notes = "".join(f"<li>{text(note)}</li>" for note in notes)
    return Markup(
        (f'<ul class="notes">{listed_notes}</ul>' if notes else "")
        + picture
        + _small_print(feature, series)
        + _groups(page, name, split, there)
    )


def bins_of(
    bars: Mapping[str, Mapping[str, float | None]],
) -> dict[str, Mapping[str, float | None]]:
    """Returns categories in the order of how full they are over all."""
    order = sorted(
        dict.fromkeys(name for counts in bars.values() for name in counts),
        key=lambda name: -max((counts.get(name) or 0.0) for counts in bars.values()),
    )
    return {
        site: {name: counts[name] for name in order if name in counts}
        for site, counts in bars.items()
    }


def _words(feature: Feature, series: Mapping[str, Summary]) -> str:
    """Returns what a picture shows, for those who do not see it."""
    said = []
    for name, each in [(OVERALL, overall_of(feature)), *series.items()][: _NAMED_IN_WORDS + 1]:
        if each.categories:
            most = max(each.categories, key=lambda c: (each.categories or {}).get(c) or 0.0)
            said.append(
                f"{name}: most are {short(most)}, {percent(each.categories[most], each.count)}"
            )
        elif each.mean is not None:
            said.append(f"{name}: mean {number(each.mean, feature.kind)}")
        elif each.withheld:
            said.append(f"{name}: withheld")
    return "; ".join(said) + "." if said else "No values."


def _small_print(feature: Feature, series: Mapping[str, Summary]) -> str:
    lines = []
    for site, each in series.items():
        lines += [f"{site}: {w.what} withheld, {w.reason}" for w in each.withheld
                  if w.what != "everything"]  # fmt: skip
        lines += [f"{site}: withheld, {w.reason}" for w in each.withheld if w.what == "everything"]
        if each.noise:
            lines.append(f"{site}: {each.noise} in these numbers")
        if each.count == 0 and total(each):
            lines.append(f"{site}: all {total(each):,.0f} values are missing")
    if feature.without:
        lines.append(f"no such column at {listed(feature.without)}")
    edges = {tuple(h.edges) for each in series.values() if (h := each.histogram) is not None}
    if len(edges) > 1:
        lines.append("the sites' bins differ in width: heights are per width of the narrowest")
    silent = [site for site, each in series.items() if each.count is None]
    first = [f"all sites: counted without {listed(silent)}"] if silent else []
    if others := of_another_kind(feature.kind, series):
        first.append(
            f"not in the picture, nor in all sites' numbers: {listed(others)}, where the column is "
            f"not {feature.kind}"
        )
    return unfolded([*first, *weighty_first(lines)], _LINES)


def _groups(page: Page, name: str, split: str, there: Split) -> str:
    """Returns a column by the column that was grouped by: a picture of all sites, and a table."""
    by = page.result.group_by
    found = {group: g.features[name] for group, g in there.groups.items() if name in g.features}
    if by is None or not found or name == by:
        return ""
    overall = {group: feature.overall for group, feature in found.items()}
    kind = there.features[name].kind
    each_site = {
        f"{group}, {site}": summary
        for group, feature in found.items()
        for site, summary in {OVERALL: overall_of(feature), **feature.by_site}.items()
    }
    where = f"{short(name)} in {split} by {short(by)}"
    bars = {n: counts for n, each in overall.items() if (counts := each.categories) is not None}
    tables = [
        moments(f"Counts and moments of {where}", kind, each_site, page.key(), f"{by}, site"),
        bins(f"Values of {where}, all sites, a bin", kind, overall, page.key()),
        categories(f"Rows of {where}, all sites, a category", bins_of(bars), page.key())
        if bars
        else None,
    ]
    figure = distribution(kind, None, overall, styles(list(overall)))
    if figure is not None:
        figure["groups"] = True
    words = "; ".join(
        f"{group}: mean {number(each.mean, kind)}" if each.mean is not None else group
        for group, each in list(overall.items())[:_NAMED_IN_WORDS]
    )
    return (
        f'<details class="groups"><summary>By {text(short(by))}</summary>'
        f"{page.picture(figure, f'{where}. {words}.', tables)}</details>"
    )
