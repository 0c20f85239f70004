"""`prefect-federated statistics show`: runs of a real Prefect server, and files."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from prefect_federated.cli.statistics import show
from prefect_federated.errors import ConfigurationError, ConnectionFailed, StatisticsNotFound
from prefect_federated.statistics.schema import Statistics
from prefect_federated.statistics.summary import summary_markdown
from prefect_federated.tasks.statistics_result import StatisticsRef
from prefect_federated.tasks.storage import path_in_storage, put
from tests.statistics.made import troubled_heart


@flow(name="statistics", persist_result=True, result_serializer="json")
def stored(has_artifact: bool) -> StatisticsRef:
    """Leaves what a statistics job leaves, with a result that was made elsewhere."""
    path = f"{flow_run.id}/statistics.json"
    result = troubled_heart().model_copy(update={"run": str(flow_run.id)})
    put(path, result.model_dump_json().encode())
    if has_artifact:
        create_markdown_artifact(summary_markdown(result), key="statistics-heart")
    return StatisticsRef(
        path=path_in_storage(path), report="none", name=result.name, sites={}, features=14
    )


@flow(persist_result=True, result_serializer="json")
def other() -> dict[str, int]:
    return {"rounds": 5}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def api(prefect_url: str, storage: Path) -> Iterator[str]:
    """Sets an API, and a folder for results, as a user's settings do."""
    with temporary_settings({PREFECT_API_URL: prefect_url, PREFECT_LOCAL_STORAGE_PATH: storage}):
        yield prefect_url


@pytest.fixture(scope="module")
def run(api: str) -> tuple[str, str]:
    """Returns id and name of a run of statistics that is over."""
    state = stored(has_artifact=True, return_state=True)
    return named(str(state.state_details.flow_run_id))


def named(key: str) -> tuple[str, str]:
    with get_client(sync_client=True) as client:
        return key, client.read_flow_run(uuid.UUID(key)).name


def test_a_run_is_found_by_id_by_its_beginning_and_by_name(
    run: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    key, name = run
    for way in (key, key[:8], name):
        show(way)
        text = capsys.readouterr().out
        assert "Statistics of heart" in text
        assert "chol: switzerland has the value 0" in text
        assert "site-4: withheld, 11 rows < minimum 20" in text


def test_a_file_is_shown_without_any_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "statistics.json"
    file.write_text(troubled_heart().model_dump_json())
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        show(str(file), feature="chol")
    assert "chol in train, numeric" in capsys.readouterr().out


def test_report_and_json_are_written(
    run: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, copy = tmp_path / "report.html", tmp_path / "copy.json"
    show(run[0], html=html, json=copy)
    assert html.read_text().startswith("<!DOCTYPE html>")
    result = Statistics.model_validate_json(copy.read_bytes())
    assert result.run == run[0]
    text = capsys.readouterr().out
    assert f"Report: {html}" in text.replace("\n", "")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        show(run[0], html=tmp_path / "no folder" / "report.html")


def test_an_unknown_run_is_told_with_the_last_ones(run: tuple[str, str]) -> None:
    with pytest.raises(StatisticsNotFound, match=f"no flow run 'blue-owl'.*'{run[1]}'"):
        show("blue-owl")
    with pytest.raises(StatisticsNotFound, match="no flow run"):
        show(str(uuid.uuid4()))


def test_a_run_of_another_job_is_told_from_one_of_statistics(api: str) -> None:
    state = other(return_state=True)
    with pytest.raises(StatisticsNotFound, match="is not of statistics: it returned a dict"):
        show(str(state.state_details.flow_run_id))


def test_a_run_that_is_not_over_or_has_failed_says_so(api: str) -> None:
    with get_client(sync_client=True) as client:
        waiting = client.create_flow_run(stored, parameters={"has_artifact": False})
    with pytest.raises(StatisticsNotFound, match="is Pending and has no result yet"):
        show(str(waiting.id))

    @flow(name="statistics")
    def failing() -> None:
        raise ValueError("no site has a dataset 'hart'")

    state = failing(return_state=True)
    with pytest.raises(StatisticsNotFound, match=r"it is Failed, .*no site has a dataset 'hart'"):
        show(str(state.state_details.flow_run_id))


def test_a_result_on_the_servers_disk_is_shown_by_its_artifact(
    api: str, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = stored(has_artifact=True, return_state=True)
    key = str(state.state_details.flow_run_id)
    shutil.rmtree(storage / key)  # as on another machine
    show(key)
    said = capsys.readouterr()
    assert "chol: switzerland has the value 0" in said.out
    assert "base64" not in said.out
    assert "This is the summary only" in said.err
    assert "on the server's machine" in said.err.replace("\n", " ")
    with pytest.raises(StatisticsNotFound, match=r"cannot be read from here.*copy that file here"):
        show(key, json=tmp_path / "copy.json")
    without = stored(has_artifact=False, return_state=True)
    key = str(without.state_details.flow_run_id)
    shutil.rmtree(storage / key)
    with pytest.raises(StatisticsNotFound, match="cannot be read from here"):
        show(key)


def test_files_that_are_not_there_or_not_ours_are_told(tmp_path: Path) -> None:
    with pytest.raises(StatisticsNotFound, match=r"none\.json cannot be read: No such file"):
        show(str(tmp_path / "none.json"))
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"dataset": "heart"}))
    with pytest.raises(StatisticsNotFound, match="no result of statistics of this version: name"):
        show(str(file))
    file.write_text("{")
    with pytest.raises(StatisticsNotFound, match="no result of statistics"):
        show(str(file))


def test_a_server_that_is_not_there_or_not_set_is_told() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ConnectionFailed, match=r"http://127\.0\.0\.1:9/api cannot be reached"),
    ):
        show("blue-owl")
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigurationError, match="no Prefect API is set"),
    ):
        show("blue-owl")
