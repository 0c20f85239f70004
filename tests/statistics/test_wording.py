"""How it is told that numbers over all sites are withheld, or that there are none."""

import io

from rich.console import Console

from prefect_federated.statistics.schema import Feature, Split, SplitAtSite, Summary, Withheld
from prefect_federated.statistics.summary import summary_markdown
from prefect_federated.statistics.terminal import overview
from prefect_federated.statistics.wording import overall_of
from tests.statistics.made import heart

FEW = Withheld(what="everything", reason="fewer than 20 values")
RARE = Withheld(what="sum, mean, variance, min, max", reason="the range is too wide")


def feature_of(overall: Summary, **sites: Summary) -> Feature:
    """Returns a numeric column, whose overall numbers have the lines of all sites."""
    lines = [
        Withheld(what=line.what, reason=f"{site}: {line.reason}")
        for site, each in sites.items()
        for line in each.withheld
    ]
    overall = overall.model_copy(update={"withheld": lines})
    return Feature(kind="numeric", overall=overall, by_site=sites)


def test_what_one_site_withholds_is_not_withheld_over_all_sites() -> None:
    feature = feature_of(
        Summary(count=0, missing=50), a=Summary(count=0, missing=50), b=Summary(withheld=[FEW])
    )
    assert overall_of(feature).withheld == []


def test_what_every_site_withholds_is_withheld_over_all_sites() -> None:
    feature = feature_of(Summary(), a=Summary(withheld=[FEW]), b=Summary(withheld=[FEW]))
    (line,) = overall_of(feature).withheld
    assert line == Withheld(what="everything", reason="by every site: fewer than 20 values")
    feature = feature_of(
        Summary(count=90), a=Summary(count=90, withheld=[RARE]), b=Summary(withheld=[FEW])
    )
    (line,) = overall_of(feature).withheld
    assert line.what == "sum, mean, variance, std, min, max"
    assert line.reason == "by every site: the range is too wide and fewer than 20 values"


def test_a_column_without_a_value_is_not_called_withheld_for_one_empty_site() -> None:
    feature = feature_of(
        Summary(count=0, missing=50), a=Summary(count=0, missing=50), b=Summary(withheld=[FEW])
    )
    sites = {"a": SplitAtSite(rows=50), "b": SplitAtSite(rows=5)}
    split = Split(rows=55, sites=sites, features={"empty": feature})
    result = heart().model_copy(update={"splits": {"train": split}})
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(overview(result))
    (line,) = [line for line in buffer.getvalue().splitlines() if line.split()[:1] == ["empty"]]
    assert "none" in line
    assert "withheld" not in line
    (line,) = [line for line in summary_markdown(result).splitlines() if "| all sites |" in line]
    assert "withheld" not in line
