"""The result in a notebook: a light table by itself, the whole report where one asks for it.

from prefect_federated.statistics.notebook import Report

result            # displays itself: notes, what is withheld, sites, columns; some kB
Report(result)    # the report with its pictures, in the cell; 5 MB
"""

import html

from prefect_federated.statistics.html_tables import Markup, table, text
from prefect_federated.statistics.report import report_html
from prefect_federated.statistics.report_overview import NOTES_SHOWN, sites_section
from prefect_federated.statistics.report_page import Page
from prefect_federated.statistics.schema import Statistics
from prefect_federated.statistics.stand_outs import all_stand_outs
from prefect_federated.statistics.terminal import bars
from prefect_federated.statistics.wording import count, number, percent, short, spread, total

_ROWS = 100
_HEADERS = ("column", "kind", "values", "missing", "mean", "std", "min", "max", "how they lie")


class Report:
    """The whole report, shown in a notebook's cell.

    Args:
        result: What a statistics job came to.
        height_px: Height of its frame.
    """

    def __init__(self, result: Statistics, height_px: int = 800) -> None:
        self._result = result
        self._height_px = height_px

    def _repr_html_(self) -> str:
        page = html.escape(report_html(self._result))
        return (
            f'<iframe title="Report" sandbox="allow-scripts" srcdoc="{page}" '
            f'style="width:100%;height:{self._height_px}px;border:0"></iframe>'
        )


def cell_html(result: Statistics) -> str:
    """Returns a few tables as HTML without scripts, styles or pictures, for a notebook's cell."""
    found = all_stand_outs(result)
    lines = [*result.notes, *(each.text for each in found[:NOTES_SHOWN]), *result.withheld]
    if len(found) > NOTES_SHOWN:
        lines.append(f"{len(found) - NOTES_SHOWN} more stand out; the report has all")
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    parts = [
        f"<p><strong>Statistics of {text(result.dataset)}</strong>, {text(result.name)}, "
        f"{result.created:%Y-%m-%d %H:%M}</p><ul>{items}</ul>",
        sites_section(Page(result)).body,
    ]
    for place, (name, split) in enumerate(result.splits.items()):
        rows = [
            [
                short(column),
                feature.kind,
                count(feature.overall.count),
                percent(feature.overall.missing, total(feature.overall)),
                number(feature.overall.mean, feature.kind),
                spread(feature.overall.std, feature.kind),
                number(feature.overall.min, feature.kind),
                number(feature.overall.max, feature.kind),
                Markup(f"<code>{text(bars(feature.overall))}</code>"),
            ]
            for column, feature in list(split.features.items())[:_ROWS]
        ]
        caption = f"Columns in {name}, all sites"
        if len(split.features) > _ROWS:
            caption += f" (the first {_ROWS} of {len(split.features)})"
        parts.append(table(caption, _HEADERS, rows, key=f"{result.run}-{place}"))
    return "".join(parts)
