"""What a notebook shows: a light table by itself, the whole report where it is asked for."""

from pathlib import Path

from prefect_federated.statistics.notebook import Report
from tests.statistics.chromium import Watched, chromium
from tests.statistics.made import evil, many_features, troubled_heart


def test_a_result_displays_itself_in_some_kilobytes() -> None:
    text = troubled_heart()._repr_html_()
    assert "chol: switzerland has the value 0 in all its 92 values" in text
    assert "site-4: withheld, 11 rows &lt; minimum 20" in text
    assert len(text) < 30_000
    assert len(many_features(500, rows=5)._repr_html_()) < 200_000
    assert "<script" not in text
    assert "<script" not in evil()._repr_html_()
    assert "<img" not in evil()._repr_html_()


def test_the_whole_report_runs_in_a_frame_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "cell.html"
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8>{Report(troubled_heart())._repr_html_()}")
    with chromium() as browser:
        watched = Watched(browser.new_page())
        watched.page.goto(file.as_uri())
        frame = watched.page.frame_locator("iframe")
        frame.locator("#missing").scroll_into_view_if_needed()
        frame.locator(".drawn").first.wait_for()
        assert frame.locator("h1").inner_text() == "Statistics of heart"
        assert watched.said == []
