"""Finds the result of a statistics run, from wherever Prefect's API can be reached.

The API knows the run and its artifacts; the result itself lies in Prefect's result storage, which
with local storage is a folder of the server's. Where that cannot be read from here, the summary of
the run's artifact still can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from prefect_federated.errors import (
    ConfigurationError,
    ConnectionFailed,
    SnapshotCorrupt,
    StatisticsNotFound,
)
from prefect_federated.statistics.schema import Statistics
from prefect_federated.tasks.statistics_result import reference_in
from prefect_federated.tasks.storage import get

_FLOW = "statistics"
_RECENT = 200
_NAMED = 5
_FEWEST_LETTERS = 4


@dataclass(frozen=True)
class OnlySummary:
    """What the API has of a run whose result cannot be read from here.

    Args:
        markdown: The run's artifact.
        reason: Why there is no more, and what to do.
    """

    markdown: str
    reason: str


def read_statistics(file: Path) -> Statistics:
    """Returns the result in a file that a statistics run has written.

    Raises:
        StatisticsNotFound: there is no such file, or it holds something else.
    """
    try:
        return _statistics(file.read_bytes(), str(file))
    except OSError as error:
        raise StatisticsNotFound(f"{file} cannot be read: {error.strerror}.") from error


def find_statistics(run: str) -> Statistics | OnlySummary:
    """Returns the result of a statistics run or, where its storage is out of reach, a summary.

    Args:
        run: A flow run's id, the beginning of it, or the flow run's name.

    Raises:
        ConfigurationError: no Prefect API is set.
        ConnectionFailed: it cannot be reached.
        StatisticsNotFound: there is no such run, it is not of statistics, or it has no result.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError(
            f"{run!r} is no file, and no Prefect API is set to look for a run of that name. Write "
            "`prefect-federated connect --kit KIT -- prefect-federated statistics show RUN`, set "
            "PREFECT_API_URL, or give the path of the run's statistics.json."
        )
    try:
        with get_client(sync_client=True) as client:
            found = _find(client, run)
            return _result(client, found)
    except httpx.TransportError as error:
        raise ConnectionFailed(
            f"Prefect's API at {url} cannot be reached: {type(error).__name__}. Is the server up, "
            "and is `prefect-federated connect` still running?"
        ) from error
    except PrefectHTTPStatusError as error:
        raise ConnectionFailed(
            f"Prefect's API at {url} answered {error.response.status_code}. Is it Prefect's?"
        ) from error


def _find(client: SyncPrefectClient, run: str) -> FlowRun:
    try:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run)]))
    except ValueError:
        wanted = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
    newest = FlowRunSort.START_TIME_DESC
    found = client.read_flow_runs(flow_run_filter=wanted, sort=newest, limit=_NAMED + 1)
    recent: Sequence[FlowRun] = []
    if not found:
        flows = FlowFilter(name=FlowFilterName(any_=[_FLOW]))
        recent = client.read_flow_runs(flow_filter=flows, sort=newest, limit=_RECENT)
        if len(run) >= _FEWEST_LETTERS:
            found = [each for each in recent if str(each.id).startswith(run.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise StatisticsNotFound(f"{run!r} may be {_named(found)}. Write more of the id.")
    others = f"The last runs of statistics are {_named(recent)}." if recent else (
        "There are no runs of statistics: start one with `prefect deployment run "
        "'statistics/default' --param dataset=NAME`."
    )  # fmt: skip
    raise StatisticsNotFound(f"there is no flow run {run!r}, by id or by name. {others}")


def _result(client: SyncPrefectClient, run: FlowRun) -> Statistics | OnlySummary:
    name, state = f"the run {run.name!r} ({run.id})", run.state
    if state is None or not state.is_final():
        what = "Scheduled" if state is None else state.name
        raise StatisticsNotFound(f"{name} is {what} and has no result yet. Wait for its end.")
    if not state.is_completed():
        raise StatisticsNotFound(f"{name} has no result: it is {state.name}, {state.message}")
    try:
        returned = state.result(raise_on_failure=False, retry_result_failure=False)
    except Exception as error:  # a storage may raise anything
        return _summary(client, run, f"{type(error).__name__}: {error}")
    reference = reference_in(returned)
    if reference is None:
        raise StatisticsNotFound(
            f"{name} is not of statistics: it returned a {type(returned).__name__}. Runs of "
            f"statistics are those of the flow {_FLOW!r}."
        )
    try:
        content = _read(reference.path)
    except (OSError, SnapshotCorrupt) as error:
        return _summary(client, run, str(error))
    if content is None:
        return _summary(client, run, f"there is no {reference.path}")
    return _statistics(content, reference.path)


def _read(path: str) -> bytes | None:
    file = Path(path)
    if file.is_absolute():  # local storage, whose folder is the server's and not this process's
        return file.read_bytes() if file.exists() else None
    return get(path)


def _summary(client: SyncPrefectClient, run: FlowRun, why: str) -> OnlySummary:
    """Returns the run's artifact, if it has one, in place of its result."""
    where = f"{run.id}/statistics.json in Prefect's result storage"
    reason = (
        f"the result of the run {run.name!r} ({run.id}) cannot be read from here: {why}. It is "
        f"{where}, which is the server's disk unless a storage block is set. Write this command "
        "on the server's machine, copy that file here and give its path, or set a result storage "
        "that both can read (PREFECT_DEFAULT_RESULT_STORAGE_BLOCK)."
    )
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            type=ArtifactFilterType(any_=["markdown"]),
        )
    )
    for artifact in found:
        if (artifact.key or "").startswith(_FLOW) and isinstance(artifact.data, str):
            return OnlySummary(artifact.data, reason)
    raise StatisticsNotFound(reason)


def _statistics(content: bytes, where: str) -> Statistics:
    try:
        return Statistics.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise StatisticsNotFound(
            f"{where} is no result of statistics of this version: {place}: {first['msg']}. Give a "
            "statistics.json as a statistics run writes it."
        ) from error


def _named(runs: Sequence[FlowRun]) -> str:
    names = ", ".join(f"{run.name!r} ({str(run.id)[:8]})" for run in runs[:_NAMED])
    return f"{names}, ..." if len(runs) > _NAMED else names
