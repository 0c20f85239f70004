"""The curves in a job's table: each metric by round, of the sites and of the mean over them."""

import re
from collections.abc import Iterator, Mapping, Sequence

from prefect_federated.curves import Curve
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.round_report import COLUMNS

History = Sequence[Mapping[str, JsonValue]]

_ASIDE = ("initialize",)
_EVALUATE = "evaluate"
_BEFORE_TRAINING = "val_"  # begins the names of what "train" measures of the model as it came


def curves_of(history: History) -> list[Curve]:
    """Returns the curves in a job's table, those of the means first.

    The axis is the number of rounds that the model has been trained for. So `val_accuracy` of round
    3, measured before the training, stands at 2, and what "evaluate" gives at the end of a job
    continues it as its last point. Where training gives a plain `loss`, too, that of "evaluate"
    becomes a curve of its own.
    """
    rows = [row for row in history if row["kind"] not in _ASIDE]
    trained = {
        name for row in rows if row["kind"] != _EVALUATE for _, name, _ in _values(row)
    }  # fmt: skip
    points: dict[tuple[str | None, str], dict[int, float]] = {}
    last = 0
    for row in rows:
        last = max(last, round := int(str(row["round"])))
        for site, name, value in _values(row):
            place = round or last
            if row["kind"] == _EVALUATE:
                name = _evaluated(name, trained)
            elif name.startswith(_BEFORE_TRAINING):
                place = max(place - 1, 0)
            points.setdefault((site, name), {})[place] = value
    found = [Curve(name, values, site) for (site, name), values in points.items()]
    return sorted(found, key=lambda curve: (curve.site is not None, _in_order(curve.site or "")))


def last_values(curves: Sequence[Curve]) -> str:
    """Returns the curves' last values as a Markdown table: a row a site, and the mean over them."""
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    last = {
        (curve.site, curve.metric): curve.points[max(curve.points)]
        for curve in curves
        if curve.points
    }
    lines = [
        f"| last values | {' | '.join(_cell(metric) for metric in metrics)} |",
        f"| --- |{' ---: |' * len(metrics)}",
    ]
    for site in dict.fromkeys(curve.site for curve in curves):
        values = [last.get((site, metric)) for metric in metrics]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        name = "**all sites**" if site is None else _cell(site)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(row: Mapping[str, JsonValue]) -> Iterator[tuple[str | None, str, float]]:
    """Yields a row's metrics: site (None for the mean), name, value."""
    for name, value in row.items():
        if name not in COLUMNS:
            yield None, name, float(str(value))
    own = row.get("site_metrics")
    if isinstance(own, Mapping):
        for site, metrics in own.items():
            if isinstance(metrics, Mapping):
                for name, value in metrics.items():
                    yield site, name, float(str(value))


def _evaluated(name: str, trained: set[str]) -> str:
    if _BEFORE_TRAINING + name in trained:
        return _BEFORE_TRAINING + name
    return f"{name} ({_EVALUATE})" if name in trained else name


def _in_order(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Returns what sorts names as people do: site-2 before site-10."""
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def _cell(text: str) -> str:
    """Returns a text that ends no cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
