"""What a statistics job leaves: files in result storage, artifacts, and events where data drift.

A pointer file for each name of runs says which run of that name completed last; it is replaced as
the last thing of a run, whole or not at all.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_federated.errors import ConfigurationError, SnapshotCorrupt
from prefect_federated.statistics.absence import rows_of
from prefect_federated.statistics.schema import OVERALL, Comparison, Drift, Split, Statistics
from prefect_federated.statistics.withholding import one_line
from prefect_federated.tasks.artifacts import key_of
from prefect_federated.tasks.storage import get, path_in_storage, put_result

DRIFT_EVENT = "federated.statistics.drift"
_MOST_EVENTS = 100  # of one run; the largest drifts
_MOST_REASONS = 5  # that a state's message says
_LONGEST_REASON = 160


class StatisticsRef(BaseModel):
    """Where the result of a statistics job is, and what a person must know of it at once.

    Args:
        path: The result as JSON, in Prefect's result storage; with local storage, the file's path.
        report: The HTML report.
        name: What runs are compared by.
        sites: Site -> answered, absent or failed.
        reasons: Site -> why it has failed, as one short sentence.
        features: Number of columns.
        withheld: All that sites withhold, as lines.
        drifted: How many features at sites have drifted since the last run of the name.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    report: str
    name: str
    sites: dict[str, str]
    reasons: dict[str, str] = Field(default={})
    features: int
    withheld: list[str] = Field(default=[])
    drifted: int = 0


def reference_in(result: object) -> StatisticsRef | None:
    """Returns the reference that a run's result is; None if it is something else.

    Prefect gives a result that it has read again as what its JSON holds.
    """
    try:
        return StatisticsRef.model_validate(result)
    except ValidationError:
        return None


class Earlier(BaseModel):
    """The last completed run of a name.

    Args:
        result: Of that run.
        is_told: Whether an attempt before this one has told of what has drifted since then.
    """

    result: Statistics
    is_told: bool = False

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Returns column -> the range of its histograms."""
        return {
            name: (feature.overall.histogram.edges[0], feature.overall.histogram.edges[-1])
            for split in self.result.splits.values()
            for name, feature in split.features.items()
            if feature.overall.histogram is not None
        }


def last_of(name: str, run: str) -> Earlier | None:
    """Returns the last completed run of a name; None if there is none that can be read.

    Args:
        name: What runs are compared by.
        run: The run that asks. Where an earlier attempt of it got as far as its end, the run that
            this attempt was compared with is returned.
    """
    try:
        pointer = get(_pointer(name))
        last = None if pointer is None else _stored(pointer.decode())
        if last is None or last.run != run:
            return None if last is None else Earlier(result=last)
        before = None if last.compared is None else _stored(_path(last.compared.run))
        return None if before is None else Earlier(result=before, is_told=True)
    except (SnapshotCorrupt, ValidationError, UnicodeDecodeError) as error:
        get_run_logger().warning(
            "this run is compared with none: the last result of %r cannot be read (%s)",
            name,
            str(error).splitlines()[0],
        )
        return None


def _stored(path: str) -> Statistics | None:
    content = get(path)
    return None if content is None else Statistics.model_validate_json(content)


def _path(run: str) -> str:
    return f"{run}/statistics.json"


def check_can_report() -> None:
    """Raises `ConfigurationError` if what makes the report is not installed at the server."""
    missing = [name for name in ("pandas", "plotly", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the report of statistics needs {', '.join(missing)}, not installed at the server: "
            "pip install 'prefect-federated[statistics]' there."
        )


def prepare() -> None:
    """Imports what `publish` needs and what takes long to import."""
    with contextlib.suppress(ImportError):  # `check_can_report` says what to install
        import_module("prefect_federated.statistics.report")
        import_module("prefect_federated.statistics.summary")


def publish(
    result: Statistics, earlier: Earlier | None, psi_threshold: float, ks_threshold: float
) -> StatisticsRef:
    """Writes the result and its report, shows them in the UI, and tells of what has drifted.

    Args:
        result: What the sites have answered.
        earlier: The run to compare it with.
        psi_threshold: Population stability index from which a feature has drifted.
        ks_threshold: Kolmogorov-Smirnov distance from which it has.

    Raises:
        SnapshotFailed: a file could not be written.
    """
    # not before the sites have answered: pictures are made with what takes long to import
    from prefect_federated.statistics.drift import compare
    from prefect_federated.statistics.report import report_html

    result = _with_notes(result)
    if earlier is not None:
        compared = compare(result, earlier.result, psi_threshold, ks_threshold)
        result = result.model_copy(update={"compared": compared})
    path, report = _path(result.run), f"{result.run}/statistics.html"
    put_result(path, result.model_dump_json(indent=1).encode())
    put_result(report, report_html(result).encode())
    drifted = [] if result.compared is None else _past(result.compared)
    _show(result, path_in_storage(report))
    if earlier is None or not earlier.is_told:
        _tell(result, drifted)
    put_result(_pointer(result.name), path.encode())
    return StatisticsRef(
        path=path_in_storage(path),
        report=path_in_storage(report),
        name=result.name,
        sites={site: state.state for site, state in result.sites.items()},
        reasons={
            site: _first_sentence(state.reason)
            for site, state in result.sites.items()
            if state.state == "failed"
        },
        features=len({name for split in result.splits.values() for name in split.features}),
        withheld=result.withheld,
        drifted=len(drifted),
    )


def message_of(reference: StatisticsRef) -> str:
    """Returns the final state's message: what was answered, and in one line what is withheld."""
    states = list(reference.sites.values())
    parts = [f"{reference.features} features at {states.count('answered')} of {len(states)} sites"]
    absent = [site for site, state in reference.sites.items() if state == "absent"]
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    if "failed" in states:
        parts.append(f"failed: {', '.join(_failed(reference))}")
    if reference.drifted:
        parts.append(f"{reference.drifted} drifted since the last run")
    if reference.withheld:
        parts.append(one_line(reference.withheld))
    return "; ".join(parts)


def _failed(reference: StatisticsRef) -> Iterator[str]:
    """Yields the failed sites, each with its reason, or those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for site, state in reference.sites.items():
        if state == "failed":
            by_reason.setdefault(reference.reasons.get(site, ""), []).append(site)
    for place, (reason, sites) in enumerate(by_reason.items()):
        is_said = reason and place < _MOST_REASONS
        yield f"{', '.join(sites)} ({reason})" if is_said else ", ".join(sites)


def _first_sentence(reason: str) -> str:
    first = reason.strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return first if len(first) <= _LONGEST_REASON else f"{first[: _LONGEST_REASON - 3]}..."


def _with_notes(result: Statistics) -> Statistics:
    splits = {name: _noted(split) for name, split in result.splits.items()}
    return result.model_copy(update={"splits": splits})


def _noted(split: Split) -> Split:
    from prefect_federated.statistics.stand_outs import stand_outs

    features = {
        name: feature.model_copy(update={"stands_out": stand_outs(name, feature, rows_of(split))})
        for name, feature in split.features.items()
    }
    groups = {name: _noted(group) for name, group in split.groups.items()}
    return split.model_copy(update={"features": features, "groups": groups})


def _past(compared: Comparison) -> list[Drift]:
    return [drift for drift in compared.drifts if drift.is_past_threshold]


def _pointer(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60].strip("-")
    return f"statistics-last/{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.txt"


def _show(result: Statistics, report: str) -> None:
    key = f"statistics-{key_of(result.name).strip('-')}"
    link = Path(report).as_uri() if Path(report).is_absolute() else report
    try:
        from prefect_federated.statistics.summary import summary_markdown

        create_markdown_artifact(
            summary_markdown(result, f"[the report]({link})"),
            key=key,
            description=f"Statistics of {result.dataset}",
        )
        create_link_artifact(
            link, link_text="The report", key=f"{key}-report", description=f"A file: {report}"
        )
    except Exception:  # a job does not fail because a picture of it could not be made
        get_run_logger().warning("the summary could not be shown", exc_info=True)


def _tell(result: Statistics, drifted: list[Drift]) -> None:
    log = get_run_logger()
    for drift in drifted[:_MOST_EVENTS]:
        try:
            _emit(result, drift)
        except Exception:  # Prefect's limits on events, for one: no reason to fail
            log.warning("the event of a drift was not emitted", exc_info=True)
    if len(drifted) > _MOST_EVENTS:
        log.warning("%d drifts; events tell of the %d largest", len(drifted), _MOST_EVENTS)


def _emit(result: Statistics, drift: Drift) -> None:
    assert result.compared is not None
    name = flow_run.name or result.run
    related = [_resource(f"prefect.flow-run.{result.run}", name, "flow-run")]
    if drift.site != OVERALL:
        related.append(_resource(f"federated.site.{drift.site}", drift.site, "site"))
    payload: dict[str, object] = {
        "name": result.name,
        "dataset": result.dataset,
        "run": result.run,
        "earlier_run": result.compared.run,
        **drift.model_dump(exclude={"is_past_threshold"}),
        "report": f"{result.run}/statistics.html",
    }
    resource = _resource(f"federated.statistics.{result.name}", result.name)
    emit_event(DRIFT_EVENT, resource=resource, related=related, payload=payload)


def _resource(key: str, name: str, role: str | None = None) -> dict[str, str]:
    resource: Mapping[str, str] = {"prefect.resource.id": key, "prefect.resource.name": name}
    return dict(resource) if role is None else {**resource, "prefect.resource.role": role}
