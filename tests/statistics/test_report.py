"""The report in a real browser: what it shows, to whom, and that nothing in it does any harm."""

import html
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page

from prefect_federated.statistics import report
from prefect_federated.statistics.drift import compare
from prefect_federated.statistics.report import report_html
from prefect_federated.statistics.schema import SiteState, Statistics
from tests.statistics.chromium import FAULTS, HEADINGS, OVERFLOW_PX, PALE, Watched, chromium
from tests.statistics.made import EVIL, evil, heart, many_features, troubled_heart

AS_OPENED = """() => {
  document.querySelector("form").reset();
  document.querySelectorAll("input").forEach((input) => {
    if (input.checked || input.type === "checkbox") {
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
    if (input.type === "search") input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  document.querySelectorAll("details:not(.controls)").forEach((each) => { each.open = false; });
  scrollTo(0, 0);
}"""
OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Opens a report of the heart example, with trouble and drift, from a file."""
    result = troubled_heart()
    earlier = result.model_copy(update={"splits": heart().splits, "run": "the-run-before"})
    result = result.model_copy(update={"compared": compare(result, earlier)})
    return opened(browser, result, tmp_path_factory.mktemp("reports") / "heart.html")


@pytest.fixture
def watched(shared: Watched) -> Watched:
    """Returns that page as it is when it has just been opened on a large screen."""
    shared.page.set_viewport_size({"width": 1200, "height": 900})
    shared.page.emulate_media(color_scheme="light")
    shared.page.evaluate(AS_OPENED)
    return shared


@pytest.fixture
def page(watched: Watched) -> Page:
    """Returns the page itself."""
    return watched.page


def opened(browser: Browser, result: Statistics, file: Path) -> Watched:
    """Writes a report and opens it."""
    file.write_text(report_html(result))
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(20_000)
    watched = Watched(context.new_page())
    watched.page.goto(file.as_uri())
    return watched


def picture(page: Page, column: str) -> Locator:
    """Scrolls to a column's picture, of the split that is shown, and returns it once drawn."""
    article = page.locator(f'article[data-name="{column}"]')
    article.evaluate("(it) => it.scrollIntoView()")
    plot = article.locator(".plot:visible").first
    plot.locator(".main-svg").first.wait_for()
    return plot


def drawn(plot: Locator) -> list[dict[str, object]]:
    """Returns what plotly has drawn: a trace a site."""
    found: list[dict[str, object]] = plot.evaluate(
        "(e) => e.data.map((t) => ({name: t.name, x: [...t.x], y: [...t.y]}))"
    )
    return found


def test_the_two_findings_of_the_heart_example_are_the_first_thing_one_reads(page: Page) -> None:
    notes = page.locator("main section").first.locator("li").all_inner_texts()
    assert "chol: switzerland has the value 0 in all its 92 values" in notes[0]
    assert "ca: two thirds of all values are missing (458 of 690)" in notes[1]
    box = page.locator("main section li").nth(1).bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 500  # without scrolling


def test_the_page_asks_nothing_of_the_network_and_complains_of_nothing(watched: Watched) -> None:
    page = watched.page
    for column in ("age", "sex", "fbs"):
        picture(page, column)
    page.locator("#correlation").scroll_into_view_if_needed()
    page.locator("section:has(#correlation) .plot .main-svg").first.wait_for()
    assert watched.requests == [page.url]
    assert watched.said == []


def test_a_link_of_the_contents_leads_to_its_section_on_a_slow_machine(page: Page) -> None:
    for column in ("age", "sex", "fbs"):
        picture(page, column)
    slow = page.context.new_cdp_session(page)
    slow.send("Emulation.setCPUThrottlingRate", {"rate": 8})
    page.locator('nav a[href="#correlation"]').click()
    page.locator("section:has(#correlation) .plot .main-svg").first.wait_for()
    box = page.locator("#correlation").bounding_box()
    slow.detach()
    assert box is not None
    assert 0 <= box["y"] < 900  # nothing that was drawn on the way has moved it off


def test_a_picture_is_drawn_when_one_comes_to_it_and_let_go_when_one_leaves(page: Page) -> None:
    first = picture(page, "age")
    assert page.locator(".plot").count() > 50
    assert page.locator(".drawn").count() < 8
    picture(page, "num")
    page.wait_for_function("(plot) => !plot.querySelector('svg')", arg=first.element_handle())
    assert page.locator(".drawn").count() < 8


def test_sites_can_be_switched_off_and_on(page: Page) -> None:
    plot = picture(page, "chol")
    names = [trace["name"] for trace in drawn(plot)]
    assert names == ["all sites", "cleveland", "hungary", "switzerland", "va-long-beach"]
    page.get_by_role("checkbox", name="hungary").uncheck()
    page.get_by_role("checkbox", name="all sites").uncheck()
    left = [trace["name"] for trace in drawn(plot)]
    assert left == ["cleveland", "switzerland", "va-long-beach"]
    page.get_by_role("checkbox", name="hungary").check()
    assert "hungary" in [trace["name"] for trace in drawn(plot)]


def test_heights_are_shares_of_a_site_or_counts(page: Page) -> None:
    plot = picture(page, "chol")
    swiss = drawn(plot)[3]
    assert swiss["name"] == "switzerland"
    assert max(swiss["y"]) == 1  # type: ignore[call-overload]
    page.get_by_role("radio", name="counts").check()
    assert max(drawn(plot)[3]["y"]) == 92  # type: ignore[call-overload]
    bars = picture(page, "sex")
    assert drawn(bars)[0]["name"] == "all sites"
    assert sum(drawn(bars)[0]["x"]) == 690  # type: ignore[call-overload]


def test_the_split_is_switched_for_pictures_and_tables(page: Page) -> None:
    article = page.locator('article[data-name="age"]')
    article.evaluate("(it) => it.scrollIntoView()")
    assert article.locator("h4:visible").all_inner_texts() == ["train"]
    page.get_by_role("radio", name="test").check()
    assert article.locator("h4:visible").all_inner_texts() == ["test"]
    page.get_by_role("radio", name="counts").check()
    assert sum(drawn(picture(page, "age"))[0]["y"]) / 2 == 230  # type: ignore[call-overload]


def test_a_column_can_be_looked_for(page: Page) -> None:
    page.get_by_label("Find a column").fill("TH")
    assert page.locator("article:visible").evaluate_all("e => e.map((a) => a.dataset.name)") == [
        "thalch",
        "thal",
    ]
    assert page.locator("#found").inner_text() == "2 of 14"


def test_what_is_withheld_and_who_is_absent_is_visible_with_the_reason(page: Page) -> None:
    text = page.locator("section:has(#withheld)").inner_text()
    assert "site-4: withheld, 11 rows < minimum 20" in text
    age = picture(page, "age").locator("xpath=ancestor::article").inner_text()
    assert "all sites: counted without site-4" in age
    sites = page.locator("section:has(#sites)").inner_text()
    assert "5 of 7 sites answered" in sites
    assert "absent: it is not connected" in sites
    assert "failed: its table 'heart' is empty" in sites
    assert (
        "site-4: withheld, 11 rows < minimum 20"
        in picture(page, "age").locator("xpath=ancestor::article").inner_text()
    )
    row = page.locator('article[data-name="age"] tr', has_text="site-4").first
    assert row.text_content() == "site-4withheld, 11 rows < minimum 20"


def test_quantiles_say_how_far_they_may_be_off(page: Page) -> None:
    table = page.locator('article[data-name="age"] table', has_text="Quantiles").first
    assert "5 %25 %50 %75 %95 %" in (table.locator("thead").text_content() or "")
    assert re.search(r"54 \[53\.76, 54\.24\]", table.text_content() or "")


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate(OVERFLOW_PX) == 0
    page.evaluate(OPEN_ALL)
    page.evaluate("document.querySelectorAll('article').forEach((a) => "
                  "{ a.style.contentVisibility = 'visible'; })")  # fmt: skip
    for column in ("age", "sex"):
        box = picture(page, column).locator(".main-svg").first.bounding_box()
        assert box is not None
        assert 300 < box["width"] <= 360
    page.locator("#correlation").scroll_into_view_if_needed()
    assert page.evaluate(OVERFLOW_PX) == 0
    page.evaluate("document.querySelectorAll('article').forEach((a) => "
                  "{ a.style.contentVisibility = ''; })")  # fmt: skip


def test_dark_mode_changes_the_page_and_its_pictures_at_once(page: Page) -> None:
    plot = picture(page, "chol")

    def looks() -> list[str]:
        found: list[str] = plot.evaluate(
            """(e) => [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.body).color, e.querySelector(".main-svg").style.background,
            getComputedStyle(e.querySelector(".xtick text")).fill,
            getComputedStyle(e.querySelector(".trace .js-line")).stroke]"""
        )
        return found

    light = looks()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("(e) => e.layout.font.color === '#e6eaef'", arg=plot.element_handle())
    assert all(one != other for one, other in zip(light, looks(), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(
    page: Page, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate(OPEN_ALL)
    assert page.evaluate(PALE) == []


def test_a_screen_reader_finds_its_way(page: Page) -> None:
    assert page.evaluate(FAULTS) == []
    headings = page.evaluate(HEADINGS)
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(headings))
    first = page.evaluate("document.querySelector('a, button, input, [tabindex]').className")
    assert first == "skip"
    page.locator(".skip").press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_each_picture_has_its_table(page: Page) -> None:
    lonely = page.locator(".plot").evaluate_all(
        """(plots) => plots.filter((p) => !p.closest("figure").nextElementSibling
        ?.matches("details.numbers:has(table)")).map((p) => p.getAttribute("aria-label"))"""
    )
    assert lonely == []


def test_the_table_of_a_picture_has_its_numbers(page: Page) -> None:
    page.get_by_role("radio", name="counts").check()
    plot = picture(page, "chol")
    table = page.locator('article[data-name="chol"] .split:visible table', has_text="a bin").first
    table.evaluate("(t) => { t.closest('details').open = true; }")
    header = table.locator("thead th").all_inner_texts()
    cells = table.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((r) => [...r.querySelectorAll('td')].map((c) => c.innerText))"
    )
    for trace in drawn(plot):
        place = header.index(str(trace["name"])) - 1
        heights = list(trace["y"])[1:-1:2]  # type: ignore[call-overload]
        assert [int(row[place].replace(",", "")) for row in cells] == heights


def test_drift_is_shown_with_what_could_not_be_compared(page: Page) -> None:
    text = page.locator("section:has(#drift)").inner_text()
    assert "Compared with the run the-run-before" in text
    assert "site-4" in text  # was not there in the run before


def test_names_that_sites_chose_do_no_harm(browser: Browser, tmp_path: Path) -> None:
    result = evil()
    watched = opened(browser, result, tmp_path / "evil.html")
    page = watched.page
    page.evaluate(OPEN_ALL)
    for plot in page.locator(".plot").all():
        plot.evaluate("(it) => it.scrollIntoView()")
        plot.locator(".main-svg").first.wait_for()
    assert page.evaluate("window.harm") is None
    assert page.locator("img, body script:not([type]) ~ script[src]").count() == 0
    assert watched.requests == [page.url]
    assert watched.said == []
    body = page.locator("body").inner_text()
    for where in ("dataset", "site", "column", "reason", "note", "category"):
        assert f"{where} {EVIL}"[:40] in body, where
    ticks = page.locator(".plot text").all_text_contents()
    assert any("<script>" in tick for tick in ticks)  # as text
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate(OVERFLOW_PX) == 0
    page.context.close()


def test_no_text_of_a_sites_is_markup_anywhere_in_the_file() -> None:
    text = report_html(evil())
    page = text[: text.rindex("<script>", 0, text.rindex("<script>"))]  # without our own scripts
    assert "window.harm = 1</script>" not in page
    assert "<img" not in page
    assert html.escape(f"site {EVIL}") in page


def test_who_did_not_answer_is_told_in_sentences() -> None:
    result = heart()
    away = {
        "c": SiteState(state="failed", reason="It has no table. Make one at this site."),
        "d": SiteState(state="absent", reason="it is not connected."),
        "e": SiteState(state="absent"),
    }
    text = report_html(result.model_copy(update={"sites": {**result.sites, **away}}))
    assert (
        "<p>4 of 7 sites answered. c failed: It has no table. Make one at this site; "
        "d is absent: it is not connected; e is absent.</p>"
    ) in text


def test_a_report_of_thirty_columns_is_made_in_well_under_two_seconds() -> None:
    result = many_features(30)
    started = time.process_time()
    report_html(result)
    assert time.process_time() - started < 1.5


def test_a_report_of_five_hundred_columns_opens(browser: Browser, tmp_path: Path) -> None:
    watched = opened(
        browser, many_features(500, rows=20, sites=2, splits=("train",)), tmp_path / "wide.html"
    )
    plot = picture(watched.page, "feature-499")
    assert len(drawn(plot)) == 3
    assert watched.page.locator(".drawn").count() < 20
    assert watched.said == []
    watched.page.context.close()


def test_a_result_of_nothing_has_a_report(browser: Browser, tmp_path: Path) -> None:
    nothing = heart().model_copy(update={"splits": {}, "sites": {}})
    watched = opened(browser, nothing, tmp_path / "nothing.html")
    assert watched.page.locator("h1").inner_text() == "Statistics of heart"
    assert watched.said == []
    watched.page.context.close()


def test_numbers_stand_out_from_each_colour_of_a_matrix() -> None:
    script = (Path(report.__file__).parent / "report.js").read_text()
    scales = script[script.index("const SCALES") : script.index("};", script.index("const SCALES"))]
    lines = [re.findall(r'"#(\w{6})"', line) for line in scales.splitlines() if "#" in line]
    assert len(lines) == 4

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for line, text in zip(lines, (0.0, 1.0, 0.0, 1.0), strict=True):
        for colour in line:  # between two colours of a scale, contrast is between theirs
            light, dark = sorted((text, luminance(colour)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, colour
