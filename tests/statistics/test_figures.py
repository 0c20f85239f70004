"""What the report's pictures show, where a column is of another kind at some sites."""

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics.figures import Figure, distribution, of_another_kind
from prefect_federated.statistics.report import report_html
from prefect_federated.statistics.schema import Feature, Histogram, SiteState, Statistics, Summary
from prefect_federated.statistics.summary import summary_markdown
from tests.statistics.made import heart

NUMBERS = Summary(
    count=30, missing=0, mean=1.5, histogram=Histogram(edges=[0, 1, 2], counts=[10, 20])
)
WORDS = Summary(count=20, missing=0, categories={"low": 12, "high": 8})
TRUTHS = Summary(count=40, missing=0, mean=0.25)


def drawn(figure: Figure | None) -> tuple[object, list[str]]:
    """Returns how a picture is drawn, and whose values."""
    assert figure is not None
    series = figure["series"]
    assert isinstance(series, list)
    return figure["type"], [each["name"] for each in series]


def mixed(kind: Kind, overall: Summary) -> Statistics:
    """Returns a result with one column, x, that is numbers at a and text at b."""
    sites = {"a": NUMBERS, "b": WORDS}
    feature = Feature(kind=kind, overall=overall, by_site=sites)
    result = heart()
    split = result.splits["train"].model_copy(
        update={"features": {"x": feature}, "sites": {}, "correlation": None}
    )
    states = {site: SiteState(state="answered") for site in sites}
    return result.model_copy(update={"splits": {"train": split}, "sites": states})


def test_of_numbers_the_picture_is_lines_though_a_site_has_text() -> None:
    sites = {"a": NUMBERS, "b": WORDS}
    figure = distribution("numeric", NUMBERS, sites, {})
    assert drawn(figure) == ("histogram", ["all sites", "a"])
    assert of_another_kind("numeric", sites) == ["b"]


def test_of_categories_the_picture_is_bars_though_a_site_has_numbers() -> None:
    sites = {"a": NUMBERS, "b": WORDS}
    assert drawn(distribution("categorical", WORDS, sites, {})) == ("bars", ["all sites", "b"])
    assert of_another_kind("categorical", sites) == ["a"]
    truths = {"a": NUMBERS, "b": TRUTHS}
    assert drawn(distribution("boolean", TRUTHS, truths, {})) == ("bars", ["all sites", "b"])
    assert of_another_kind("boolean", truths) == ["a"]


def test_without_anything_to_draw_there_is_no_picture() -> None:
    assert distribution("numeric", None, {"b": WORDS}, {}) is None
    assert distribution("categorical", None, {"a": NUMBERS}, {}) is None


def test_the_report_and_the_summary_say_who_is_not_in_the_picture_and_why() -> None:
    result = mixed("numeric", NUMBERS)
    words = "b, where the column is not numeric"
    assert f"<li>not in the picture, nor in all sites&#x27; numbers: {words}</li>" in report_html(
        result
    )
    text = summary_markdown(result)
    assert "Not in the pictures, as the column's kind differs there: x at b." in text
    assert "kind differs" not in summary_markdown(heart())
