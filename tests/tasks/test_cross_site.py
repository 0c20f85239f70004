"""Every model at every site, against a closed form, whatever fails and is begun again."""

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from prefect_federated.aggregators import weighted_mean
from prefect_federated.cross_site_matrix import GLOBAL, Matrix, Measured, ModelRow
from prefect_federated.errors import (
    QuorumNotReached,
    SnapshotCorrupt,
    SnapshotFailed,
    StaleController,
)
from prefect_federated.messages import Reply, SiteFailure, Update
from prefect_federated.tasks import site_models
from prefect_federated.tasks.cross_site import SiteModels, cross_site_evaluation
from prefect_federated.tasks.federation import Federation, federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import State, restore, snapshot
from tests.tasks.in_a_flow import run_in_flow
from tests.tasks.numbered_executor import MODEL, loss, number

pytestmark = pytest.mark.usefixtures("prefect_api")

EXECUTOR = "tests.tasks.numbered_executor"


def rounds_and_matrix(fed: Federation, rounds: int = 2, quorum: float = 0.2) -> Matrix:
    """Trains some rounds, keeping the sites' models, and evaluates them all at all sites."""
    models, model = SiteModels(fed), dict(MODEL)
    for round in range(1, rounds + 1):
        replies = fed.broadcast("train", model, round=round, quorum=quorum, same_tensors=False)
        model |= weighted_mean(models.keeping(replies, round))
    return cross_site_evaluation(fed, models, model, rounds)


def measured(row: ModelRow, site: str) -> float:
    cell = row.cells[site]
    assert isinstance(cell, Measured), cell
    return cell.metrics["loss"]


def updates(*sites: str) -> Iterator[Reply]:
    for site in sites:
        yield Update({"w": np.full(2, number(site))}, site=site)


def page_of(run: str) -> str:
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run)]))
    with get_client(sync_client=True) as client:
        (found,) = [
            artifact
            for artifact in client.read_artifacts(artifact_filter=of_the_run)
            if str(artifact.key).endswith("cross-site")
        ]
    return str(found.data)


def test_each_models_metrics_at_each_site_are_the_closed_forms(tmp_path: Path) -> None:
    def controller(fed: Federation) -> tuple[Matrix, str, list[Any]]:
        return rounds_and_matrix(fed), str(flow_run.id), list(fed.reporter.history)

    matrix, run, table = run_in_flow(controller, tmp_path, executor=EXECUTOR)
    assert matrix.sites == tuple("abcde")
    assert [(row.name, row.round) for row in matrix.rows] == [
        (GLOBAL, 2),
        *((s, 2) for s in "abcde"),
    ]
    trained = [3.002, *(number(site) + 0.002 for site in "abcde")]
    for row, value in zip(matrix.rows, trained, strict=True):
        for site in "abcde":
            assert measured(row, site) == pytest.approx(loss(value, site), rel=1e-12)
        means = sum(number(s) * loss(value, s) for s in "abcde") / 15  # 10 to 50 examples
        assert row.mean("loss") == pytest.approx(means, rel=1e-12)
    np.testing.assert_array_equal(
        matrix.values("loss"), [[measured(row, s) for s in "abcde"] for row in matrix.rows]
    )
    assert [row["kind"] for row in table] == ["train", "train"]  # the curves are of the rounds

    (file,) = tmp_path.rglob("cross-site.json")
    read = json.loads(file.read_text())
    assert read == matrix.to_json()
    assert read["models"][0]["site"] is None
    assert read["models"][2]["at"]["c"] == {
        "metrics": {"loss": pytest.approx(loss(2.002, "c"))}, "weight": 30
    }  # fmt: skip
    assert file.parent == next(tmp_path.rglob("site-models.json")).parent
    page = page_of(run)
    assert "| model of | a | b | c | d | e | mean |" in page
    assert f"| b | {loss(2.002, 'a'):.4g} | **0.5** | " in page
    assert "](data:image/png;base64," in page
    assert "What is missing" not in page


def test_a_site_that_fails_keeps_its_last_model_and_one_that_never_counted_has_none(
    tmp_path: Path,
) -> None:
    silent = {"silent_in_1": ["e"], "silent_in_2": ["b", "e"]}
    matrix = run_in_flow(rounds_and_matrix, tmp_path, executor=EXECUTOR, config=silent)
    assert matrix.without == ("e",)
    assert {row.site: row.round for row in matrix.rows} == {None: 2, "a": 2, "b": 1, "c": 2, "d": 2}
    assert measured(matrix.rows[2], "b") == pytest.approx(loss(2.001, "b"), rel=1e-12)
    assert matrix.to_json()["without_model"] == ["e"]
    assert "- e has no model: no update of it counted" in matrix.markdown_of_failures()
    files = sorted(path.name for path in tmp_path.rglob("site-models/*"))
    assert [name[:7] for name in files] == ["a-00002", "b-00001", "c-00002", "d-00002"]


def test_a_site_that_fails_with_one_model_is_a_value_and_is_asked_about_the_others(
    tmp_path: Path,
) -> None:
    def controller(fed: Federation) -> tuple[Matrix, str]:
        return rounds_and_matrix(fed), str(flow_run.id)

    matrix, run = run_in_flow(
        controller, tmp_path, executor=EXECUTOR, max_failures=1, config={"refuses": {"c": 1}}
    )
    ((row, failure),) = matrix.failures
    assert (row.site, failure.site) == ("a", "c")
    assert "no | model of 1s" in failure.reason
    assert math.isnan(matrix.values("loss")[1, 2])
    at = matrix.to_json()["models"][1]["at"]  # type: ignore[index, call-overload]
    assert at["c"] == {"failure": failure.reason}  # type: ignore[index, call-overload]
    assert measured(matrix.rows[2], "c") == pytest.approx(loss(2.002, "c"))
    page = page_of(run)
    assert "| none |" in page
    assert r"- model of a at c: " in page
    assert r"no \| model of 1s" in page


def test_a_job_whose_executor_cannot_evaluate_gets_a_matrix_that_says_so(tmp_path: Path) -> None:
    def controller(fed: Federation) -> Matrix:
        models = SiteModels(fed)
        list(models.keeping(updates("a"), 1))
        return cross_site_evaluation(fed, models, {"w": np.zeros(2)})

    matrix = run_in_flow(controller, tmp_path, executor="tests.flows.trial_executors:loop")
    assert len(matrix.failures) == 2 * 5
    assert {failure.reason for _, failure in matrix.failures} == {"its executor does no 'evaluate'"}
    assert matrix.metrics == []
    assert "and 0 more" not in matrix.markdown_of_failures()


def test_a_round_without_its_quorum_leaves_the_models_as_they_were(tmp_path: Path) -> None:
    def controller(fed: Federation) -> dict[str, int]:
        models = SiteModels(fed)
        list(models.keeping(updates("a", "b"), 1))
        replies = fed.broadcast("train", MODEL, round=2, quorum=5, same_tensors=False)
        with pytest.raises(QuorumNotReached):
            list(models.keeping(replies, 2))
        for _ in models.keeping(updates("a", "b"), 3):
            break  # the aggregator raised
        assert models.read("b")["w"].tolist() == [2, 2]
        return {site: kept.round for site, kept in SiteModels(fed).sites.items()}

    silent = {"silent_in_2": ["e"]}
    kept = run_in_flow(controller, tmp_path, executor=EXECUTOR, config=silent)
    assert kept == {"a": 1, "b": 1}
    assert len(list(tmp_path.rglob("site-models/*"))) == 2


def test_one_update_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[object]] = []

    def arriving() -> Iterator[Reply]:
        for site in "abcde":
            assert not any(update() is not None for update in alive)
            tensor = np.full(2, number(site))
            alive.append(weakref.ref(tensor))
            yield Update({"w": tensor}, site=site)
            del tensor

    def controller(fed: Federation) -> int:
        models = SiteModels(fed)
        for reply in models.keeping(arriving(), 1):
            del reply
        return len(models.sites)

    assert run_in_flow(controller, tmp_path, executor=EXECUTOR) == 5


def test_what_is_more_than_the_model_in_an_update_can_be_left_out(tmp_path: Path) -> None:
    def controller(fed: Federation) -> list[str]:
        models = SiteModels(fed)
        reply = Update({"w": np.ones(2), "control/w": np.ones(2)}, site="a")
        failed = SiteFailure("b", "it was asleep")
        passed = list(
            models.keeping([reply, failed], 1, tensors_of=lambda u: {"w": u.tensors["w"]})
        )
        assert passed == [reply, failed]  # what the aggregator gets is whole
        return list(models.read("a"))

    assert run_in_flow(controller, tmp_path, executor=EXECUTOR) == ["w"]


def test_a_job_that_died_before_its_evaluation_finds_the_sites_models_again(
    tmp_path: Path,
) -> None:
    begun: list[int] = []

    @flow(retries=1)
    @takes(JobParameters)
    def job_that_dies(job: JobParameters) -> list[Matrix]:
        with federation(job) as fed:
            models = SiteModels(fed)
            state = restore() or State(model=MODEL)
            for round in range(state.round + 1, 3):
                begun.append(round)
                replies = fed.broadcast("train", state.model, round=round, same_tensors=False)
                mean = weighted_mean(models.keeping(replies, round))
                state = State({**state.model, **mean}, round)
                snapshot(state)
            if len(begun) == 2 and flow_run.run_count == 1:
                (folder,) = tmp_path.rglob("site-models")
                (folder / "a-00003-1-9.safetensors").write_bytes(
                    b"of a round that was not finished"
                )
                raise OSError("the machine is gone")
            return [cross_site_evaluation(fed, models, state.model, state.round)]

    simulation = Simulation(("a", "b"), 2, tmp_path, tmp_path)
    with simulating(simulation):
        (matrix,) = job_that_dies(executor=EXECUTOR)
    assert begun == [1, 2]
    assert {row.site: row.round for row in matrix.rows} == {None: 2, "a": 2, "b": 2}
    assert measured(matrix.rows[2], "a") == pytest.approx(loss(2.002, "a"), rel=1e-12)
    assert len(list(tmp_path.rglob("site-models/*.safetensors"))) == 2


def test_a_controller_that_was_replaced_changes_nothing(tmp_path: Path) -> None:
    def controller(fed: Federation) -> dict[str, int]:
        models = SiteModels(fed)
        list(models.keeping(updates("a"), 1))
        fed.hub.epoch += 1
        newer = SiteModels(fed)
        with pytest.raises(StaleController, match="keeps the sites' models"):
            list(models.keeping(updates("a"), 2))
        fed.hub.epoch -= 1
        with pytest.raises(StaleController):
            SiteModels(fed)
        newer.read("a")
        return {site: kept.round for site, kept in newer.sites.items()}

    assert run_in_flow(controller, tmp_path, executor=EXECUTOR) == {"a": 1}


def test_a_damaged_model_is_a_row_of_failures(tmp_path: Path) -> None:
    def controller(fed: Federation) -> Matrix:
        models = SiteModels(fed)
        list(models.keeping(updates("a", "b"), 1))
        (file,) = tmp_path.rglob("site-models/a-*")
        file.write_bytes(b"something else")
        return cross_site_evaluation(fed, models, MODEL)

    matrix = run_in_flow(controller, tmp_path, executor=EXECUTOR)
    assert {row.site for row, _ in matrix.failures} == {"a"}
    assert "is not what was written" in matrix.failures[0][1].reason
    assert measured(matrix.rows[2], "c") == loss(2, "c")


def test_a_list_of_models_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    def controller(fed: Federation) -> None:
        SiteModels(fed)
        (file,) = tmp_path.rglob("site-models.json")
        file.write_text("{")
        with pytest.raises(SnapshotCorrupt, match=r"site-models\.json does not name"):
            SiteModels(fed)

    run_in_flow(controller, tmp_path, executor=EXECUTOR)


def test_a_full_disk_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, model: object) -> None:
        raise OSError(28, "No space left on device")

    def controller(fed: Federation) -> None:
        models = SiteModels(fed)
        monkeypatch.setattr(site_models, "put_model", full)
        with pytest.raises(SnapshotFailed, match=r"model of site 'a' in round 1 .*No space left"):
            list(models.keeping(updates("a"), 1))

    run_in_flow(controller, tmp_path, executor=EXECUTOR)


def test_many_sites_are_all_in_the_table(tmp_path: Path) -> None:
    names = tuple(f"s{number:02}" for number in range(30))
    cells = {name: Measured({"loss": 1.0}, 1) for name in names}
    matrix = Matrix(tuple(ModelRow(name, 1, cells) for name in (None, *names)), names)
    table = matrix.markdown("loss").splitlines()
    assert len(table) == 2 + 31
    assert all(line.count("|") == 33 for line in table)
