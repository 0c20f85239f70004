"""Rows, lines and means of what became of a call."""

import json

import pytest

from prefect_federated.messages import human_bytes
from prefect_federated.tasks.round_report import COLUMNS, RoundReport
from tests.transport.trial import Trial


def report_of(**metrics: dict[str, float]) -> RoundReport:
    """Returns the report of a call that sites answered with these metrics; weights 1, 2, 3, ..."""
    trial = Trial.of(*metrics, "dead")
    peers = [trial.peer(name) for name in metrics]
    call = trial.ask(*metrics, "dead", timeout_s=5, number=4)
    for weight, peer in enumerate(peers, start=1):
        trial.clock.now += 1
        peer.reply(call, None, weight=weight, metrics=metrics[peer.name])  # type: ignore[arg-type]
    trial.clock.now += 5
    list(call)
    return RoundReport.of([call], began_at=1_700_000_000.25)


def test_metrics_are_means_over_the_sites_that_have_them_by_weight() -> None:
    report = report_of(a={"loss": 1.0, "auc": 0.5}, b={"loss": 4.0})
    assert report.metrics == {"loss": pytest.approx(3.0), "auc": 0.5}
    assert (report.asked, report.answered, report.round) == (3, 2, 4)
    assert report.failures == {"dead": "no answer within 5 s"}


def test_a_row_is_flat_and_a_line_is_one() -> None:
    report = report_of(a={"loss": 0.123456789})
    row = report.row()
    assert (row["round"], row["kind"], row["sites"]) == (4, "train", "1/2")
    assert row["began"] == "2023-11-14T22:13:20.250+00:00"
    assert (row["loss"], row["failures"]) == (0.1234568, "dead: no answer within 5 s")
    assert report.line().startswith("round 4: 1/2 sites, 6.00 s, ")
    assert report.line().endswith("loss 0.1235; dead: no answer within 5 s")


def test_a_small_metric_is_not_rounded_away() -> None:
    report = report_of(a={"loss": 3.2e-9})
    assert report.row()["loss"] == 3.2e-9
    assert "loss 3.2e-09" in report.line()


def test_a_metric_does_not_overwrite_a_column() -> None:
    row = report_of(a={"seconds": 0.5, "round": 0.25, "failures": 1.0}).row()
    assert (row["round"], row["seconds"]) == (4, 6.0)
    assert (row["site_round"], row["site_seconds"], row["site_failures"]) == (0.25, 0.5, 1.0)
    assert row["failures"] == "dead: no answer within 5 s"


def test_the_mean_of_huge_metrics_is_a_number() -> None:
    report = report_of(a={"loss": 9e307}, b={"loss": 9e307})
    assert report.metrics["loss"] == pytest.approx(9e307)


def test_metrics_of_no_weight_are_left_out() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.reply(call, None, metrics={"loss": 1.0}, metrics_weight=0)  # type: ignore[arg-type]
    list(call)
    assert RoundReport.of([call], 0).metrics == {}


def test_a_row_has_the_sites_own_metrics_where_they_are_few() -> None:
    row = report_of(a={"loss": 0.123456789, "seconds": 1.0}, b={"loss": 4.0}).row()
    assert row["site_metrics"] == {
        "a": {"loss": 0.1234568, "site_seconds": 1.0}, "b": {"loss": 4.0}
    }  # fmt: skip
    assert json.loads(json.dumps(row)) == row
    assert "site_metrics" in COLUMNS
    many = {f"site-{number}": {"loss": 1.0} for number in range(17)}
    assert "site_metrics" not in report_of(**many).row()
    del many["site-3"]
    assert len(report_of(**many).site_metrics) == 16
    assert "site_metrics" not in report_of(a={}).row()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")],
)
def test_sizes_are_as_a_person_reads_them(size: float, text: str) -> None:
    assert human_bytes(size) == text
