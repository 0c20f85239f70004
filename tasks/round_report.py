"""What became of a call to the sites: a row of the job's table, a line of its log, an event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prefect_federated.filters import Point, rows_of
from prefect_federated.messages import JsonValue, human_bytes
from prefect_federated.transport.calls import SiteReport
from prefect_federated.transport.waiting import Call

COLUMNS = frozenset(
    {"round", "kind", "sites", "began", "seconds", "bytes_sent", "bytes_received", "filters"}
    | {"late", "refused", "left_out", "failures", "site_metrics"}
)
"""The table's columns that are no metrics."""

SITES_WITH_METRICS = 16
"""Sites of a row at most that have their own metrics in it."""


@dataclass(frozen=True)
class RoundReport:
    """What became of a call, or of several that belong together: one row of the job's table.

    Args:
        kind: The site task.
        round: The round, counted from 1; 0 outside rounds.
        began_at: When the first call began, in seconds since the epoch.
        asked: Sites asked.
        answered: Sites whose update counted.
        seconds: From the first call until the last reply.
        bytes_sent: Bytes to the sites, heads included.
        bytes_received: Bytes from the sites whose updates counted.
        metrics: Name -> mean over the sites, weighted; without late updates, if there are others.
        failures: Site -> reason.
        filters: "point filter" -> bytes before and after it, all messages together.
        late: Updates that came too late for their own round, and counted in this one.
        refused: Results since the last row that did not count.
        left_out: Sites that are left out at present, because they failed too often.
        site_metrics: Site -> its own metrics; empty where more than 16 sites answered.
    """

    kind: str
    round: int
    began_at: float
    asked: int
    answered: int
    seconds: float
    bytes_sent: int
    bytes_received: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    filters: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    late: int = 0
    refused: int = 0
    left_out: Sequence[str] = ()
    site_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @staticmethod
    def of(calls: Sequence[Call], began_at: float) -> "RoundReport":
        """Returns the report of one or more calls that have ended."""
        reports = [report for call in calls for report in call.reports.values()]
        answered = [report for report in reports if report.metrics is not None]
        begins = min(call.record.started for call in calls)
        return RoundReport(
            kind=calls[0].kind,
            round=calls[0].terms.round,
            began_at=began_at,
            asked=len(reports),
            answered=len(answered),
            seconds=max(
                call.record.started - begins + report.seconds
                for call in calls
                for report in call.reports.values()
            ),
            bytes_sent=sum(report.bytes_sent for report in reports),
            bytes_received=sum(report.bytes_received for report in reports),
            metrics=_mean_metrics([r for r in answered if not r.staleness] or answered),
            failures={r.site: r.reason for r in reports if r.reason is not None},
            filters=_filter_totals(calls),
            late=sum(report.staleness > 0 for report in answered),
            site_metrics={r.site: dict(r.metrics) for r in answered if r.metrics}
            if len({report.site for report in answered}) <= SITES_WITH_METRICS
            else {},
        )

    def row(self) -> dict[str, JsonValue]:
        """Returns the report as a flat row of JSON values; metrics have 7 significant digits.

        A metric with the name of a column of ours, such as "seconds", becomes "site_seconds". The
        columns for filters, late and refused results, left-out sites and the sites' own metrics (a
        JSON object: site -> name -> number) are there where they say something.
        """
        own: dict[str, JsonValue] = {
            site: dict(_short(metrics)) for site, metrics in self.site_metrics.items()
        }
        rare: dict[str, JsonValue] = {
            "filters": "; ".join(self._filter_lines()),
            "late": self.late,
            "refused": self.refused,
            "left_out": ", ".join(self.left_out),
            "site_metrics": own,
        }
        return {
            "round": self.round,
            "kind": self.kind,
            "sites": f"{self.answered}/{self.asked}",
            "began": datetime.fromtimestamp(self.began_at, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 4),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            **_short(self.metrics),
            **{name: value for name, value in rare.items() if value},
            "failures": "; ".join(f"{site}: {why}" for site, why in self.failures.items()),
        }

    def line(self) -> str:
        """Returns the report as a line for the log."""
        what = f"round {self.round}" if self.round else self.kind
        metrics = "".join(f", {name} {value:.4g}" for name, value in self.metrics.items())
        filters = "".join(f"; {line}" for line in self._filter_lines())
        rare = f"; {self.late} late" if self.late else ""
        rare += f"; {self.refused} refused" if self.refused else ""
        rare += f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        failures = "".join(f"; {site}: {why}" for site, why in self.failures.items())
        return (
            f"{what}: {self.answered}/{self.asked} sites, {self.seconds:.2f} s, "
            f"{human_bytes(self.bytes_sent)} sent, {human_bytes(self.bytes_received)} received"
            f"{metrics}{filters}{rare}{failures}"
        )

    def summary(self) -> dict[str, JsonValue]:
        """Returns the report in the few values that an event carries."""
        return {
            "kind": self.kind,
            "asked": self.asked,
            "answered": self.answered,
            "seconds": round(self.seconds, 4),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "metrics": {name: float(f"{value:.7g}") for name, value in self.metrics.items()},
        }

    def _filter_lines(self) -> list[str]:
        return [
            f"{name} {human_bytes(before)} -> {human_bytes(after)}"
            for name, (before, after) in self.filters.items()
        ]


def _filter_totals(calls: Sequence[Call]) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for call in calls:
        sent = rows_of(call.record.task.message.header)
        rows = [(row, len(call.reports)) for row in sent]
        for report in call.reports.values():
            said = rows_of({"filtered": report.filtered})
            rows += [(row, 1) for row in said if row.point != Point.LEAVING_SERVER.value]
        for row, times in rows:
            before, after = totals.get(name := f"{row.point} {row.name}", (0, 0))
            totals[name] = before + times * row.bytes_before, after + times * row.bytes_after
    return totals


def _short(metrics: Mapping[str, float]) -> dict[str, JsonValue]:
    """Returns metrics with 7 significant digits, under names that are no column's."""
    return {
        f"site_{name}" if name in COLUMNS else name: float(f"{value:.7g}")
        for name, value in metrics.items()
    }


def _mean_metrics(reports: list[SiteReport]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for report in reports:
        for name in report.metrics or {}:
            totals[name] = totals.get(name, 0.0) + report.metrics_weight
    means = {name: 0.0 for name, total in totals.items() if total > 0}
    for report in reports:
        for name in means.keys() & (report.metrics or {}).keys():
            share = report.metrics_weight / totals[name]  # at most 1, so that no product overflows
            means[name] += share * (report.metrics or {})[name]
    return means
