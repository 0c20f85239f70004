"""The curves in a job's table."""

from prefect_federated.messages import JsonValue
from prefect_federated.tasks.curves import curves_of, last_values


def row(kind: str, round: int, **metrics: JsonValue) -> dict[str, JsonValue]:
    return {"kind": kind, "round": round, "sites": "2/2", "seconds": 1.0, "failures": "", **metrics}


HISTORY = [
    row("initialize", 0, loss=9.0),
    row("train", 1, val_accuracy=0.1, train_loss=0.9, site_metrics={"b": {"val_accuracy": 0.2}}),
    row("train", 2, val_accuracy=0.5, train_loss=0.4, site_metrics={"b": {"val_accuracy": 0.6}}),
    row("evaluate", 0, accuracy=0.8, site_metrics={"b": {"accuracy": 0.9}, "a": {"accuracy": 0.7}}),
]


def test_what_is_measured_before_training_ends_in_what_evaluate_gives() -> None:
    curves = {(curve.site, curve.metric): dict(curve.points) for curve in curves_of(HISTORY)}
    assert curves == {
        (None, "val_accuracy"): {0: 0.1, 1: 0.5, 2: 0.8},
        (None, "train_loss"): {1: 0.9, 2: 0.4},
        ("b", "val_accuracy"): {0: 0.2, 1: 0.6, 2: 0.9},
        ("a", "val_accuracy"): {2: 0.7},
    }
    assert [curve.site for curve in curves_of(HISTORY)] == [None, None, "a", "b"]


def test_a_metric_of_training_and_of_evaluate_is_two_curves_in_a_panel() -> None:
    history = [row("train", 1, loss=3.0), row("evaluate", 1, loss=2.0, auc=0.7)]
    curves = curves_of(history)
    assert [(curve.metric, dict(curve.points)) for curve in curves] == [
        ("loss", {1: 3.0}), ("loss (evaluate)", {1: 2.0}), ("auc", {1: 0.7})
    ]  # fmt: skip
    assert curves[0].word == curves[1].word


def test_sites_are_in_the_order_of_their_numbers() -> None:
    own: dict[str, JsonValue] = {f"site-{number}": {"loss": 1.0} for number in (10, 9, 1, 2)}
    curves = curves_of([row("train", 1, loss=1.0, site_metrics=own)])
    assert [curve.site for curve in curves[1:]] == ["site-1", "site-2", "site-9", "site-10"]


def test_the_last_values_are_a_table() -> None:
    assert last_values(curves_of(HISTORY)).splitlines() == [
        "| last values | val_accuracy | train_loss |",
        "| --- | ---: | ---: |",
        "| **all sites** | 0.8 | 0.4 |",
        "| a | 0.7 |  |",
        "| b | 0.9 |  |",
    ]


def test_a_job_without_metrics_has_no_curves() -> None:
    assert curves_of([row("train", 1), row("initialize", 0, loss=1.0)]) == []
