"""A real Chromium, and what the tests of pages ask of a page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

HEADINGS = """() => [...document.querySelectorAll("h1,h2,h3,h4,h5,h6")]
    .filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]))"""

FAULTS = """() => {
  const faults = [];
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  ids.filter((id, place) => ids.indexOf(id) !== place)
    .forEach((id) => faults.push(`id ${id} twice`));
  for (const attribute of ["aria-labelledby", "aria-describedby"]) {
    for (const e of document.querySelectorAll(`[${attribute}]`)) {
      const id = e.getAttribute(attribute);
      if (!document.getElementById(id)) faults.push(`${attribute}: no ${id}`);
    }
  }
  for (const e of document.querySelectorAll("input, select")) {
    if (!e.closest("label")?.textContent.trim()) faults.push(`no label: ${e.outerHTML}`);
  }
  for (const e of document.querySelectorAll("fieldset")) {
    if (!e.querySelector("legend")) faults.push("fieldset without legend");
  }
  for (const e of document.querySelectorAll("table")) {
    if (!e.caption?.textContent.trim()) faults.push("table without caption");
    if (![...e.querySelectorAll("th")].every((th) => th.scope)) faults.push("th without scope");
  }
  for (const e of document.querySelectorAll("[role=img]")) {
    if (!e.getAttribute("aria-label")) faults.push("picture without a text");
  }
  for (const e of document.querySelectorAll("a[href^='#']")) {
    if (!document.getElementById(e.hash.slice(1))) faults.push(`link to nothing: ${e.hash}`);
  }
  for (const landmark of ["header", "nav[aria-label]", "main", "footer"]) {
    if (document.querySelectorAll(`body > ${landmark}`).length !== 1) faults.push(landmark);
  }
  if (!document.documentElement.lang) faults.push("no language");
  if (!document.title) faults.push("no title");
  return faults;
}"""
"""Returns what tools for accessibility would complain of."""

PALE = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const pale = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest("svg, script")) continue;
    const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) pale.add(`${e.tagName}.${e.className}: ${contrast.toFixed(2)}`);
  }
  return [...pale];
}"""
"""Returns texts whose contrast is below what WCAG 2 asks of text."""

OVERFLOW_PX = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Watched:
    """A page, and what went wrong in it.

    Args:
        page: The page.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the system's Chromium, which `make browser` installs."""
    path = shutil.which("chromium")
    assert path is not None, "there is no chromium on the PATH: run `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
