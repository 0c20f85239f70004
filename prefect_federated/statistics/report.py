"""The report of a statistics job: one HTML file that needs no network and nothing beside it.

The page's parts are made here and in the modules beside: `report_overview`, `report_features`.
Names, categories and reasons come from the sites and are hostile text: they are escaped, and a
Content-Security-Policy runs the page's own two scripts only and forbids every connection.
"""

import base64
import hashlib
import json
from importlib import resources

from prefect_federated.adapters.plotly_script import plotly_script
from prefect_federated.statistics.html_tables import Markup, text
from prefect_federated.statistics.report_features import features_section
from prefect_federated.statistics.report_overview import (
    correlation_section,
    drift_section,
    missing_section,
    notes_section,
    sites_section,
    withheld_section,
)
from prefect_federated.statistics.report_page import Page, Section
from prefect_federated.statistics.schema import Statistics


def report_html(result: Statistics) -> str:
    """Returns the report as the text of one HTML file, about 5 MB, of which plotly is 4.8 MB.

    Args:
        result: What a statistics job came to.
    """
    page = Page(result)
    sections = [
        notes_section(page),
        withheld_section(page),
        sites_section(page),
        missing_section(page),
        drift_section(page),
        features_section(page),
        correlation_section(page),
    ]
    return _document(page, [section for section in sections if section is not None])


def _document(page: Page, sections: list[Section]) -> str:
    result = page.result
    plotly, script = _inline(plotly_script()), _inline(_file("report.js"))
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    title = text(f"Statistics of {result.dataset}")
    links = "".join(
        f'<li><a href="#{section.key}">{text(section.title)}</a></li>' for section in sections
    )
    body = "".join(
        f'<section aria-labelledby="{section.key}"><h2 id="{section.key}">{text(section.title)}'
        f"</h2>{section.body}</section>"
        for section in sections
    )
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{_file('report.css')}</style></head><body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f"<header><h1>{title}</h1><p>{_made(page)}</p></header>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        f'<main id="content" tabindex="-1">{body}</main>'
        "<footer><p>Numbers left the sites as counts and sums; no row did. Means and variances are "
        "those of all released rows together, unless a site adds noise; quantiles have the error "
        "bounds that their tables state.</p></footer>"
        f'<script type="application/json" id="figures">{_json(page)}</script>'
        f"<script>{plotly}</script><script>{script}</script></body></html>\n"
    )


def _made(page: Page) -> Markup:
    result = page.result
    return Markup(
        f'{text(result.name)}, <time datetime="{result.created.isoformat()}">'
        f"{result.created:%Y-%m-%d %H:%M} {text(result.created.tzname() or '')}</time>, "
        f'run <code class="run">{text(result.run)}</code>'
    )


def _json(page: Page) -> str:
    """Returns the pictures' numbers as JSON that cannot end its script element."""
    written = json.dumps(page.figures, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _inline(script: str) -> str:
    """Returns a script so that nothing in it ends its element, or differs from what is hashed."""
    safe = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return safe.replace("\r\n", "\n").replace("\r", "\n")  # as the browser reads them


def _file(name: str) -> str:
    return resources.files("prefect_federated.statistics").joinpath(name).read_text("utf-8")
