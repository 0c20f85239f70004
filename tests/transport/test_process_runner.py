"""Virtual sites in worker processes: what they answer, and what the end of a process costs."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ProtocolError
from prefect_federated.executors import load_executor
from prefect_federated.messages import JsonValue, Message, Reply, SiteFailure, Update
from prefect_federated.transport.batches import (
    Batch,
    LocalSites,
    Runner,
    ThreadRunner,
    VirtualSites,
    packed,
    run_packed,
    unpacked,
)
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import InprocEndpoint
from prefect_federated.transport.process_runner import ProcessRunner

EXECUTOR = "tests.transport.batch_executors"
MODEL = {"w": np.array([0.1, 0.2, 0.3])}


def sites_in(folder: Path, config: Mapping[str, JsonValue] | None = None) -> VirtualSites:
    return VirtualSites(EXECUTOR, folder / "data", folder / "state", dict(config or {}))


@contextmanager
def running(runner: Runner, count: int) -> Iterator[Hub]:
    hub = Hub("job-1", 1, [f"site-{number}" for number in range(1, count + 1)])
    with InprocEndpoint(hub, tuple(load_executor(EXECUTOR).functions), runner):
        yield hub
        hub.end("completed", "done")


def ask(hub: Hub, round: int, sites: list[str] | None = None, quorum: int = 1) -> list[Reply]:
    terms = CallTerms(round=round, quorum=quorum, timeout_s=60)
    return list(hub.call("train", Message({}, MODEL), sites or hub.attached(), terms))


def test_processes_answer_bit_for_bit_what_threads_answer(tmp_path: Path) -> None:
    threads = ThreadRunner(LocalSites(sites_in(tmp_path / "threads")), 2)
    processes = ProcessRunner(sites_in(tmp_path / "processes"), 2)
    found = []
    for runner in (threads, processes):
        with running(runner, 9) as hub:
            replies = [reply for reply in ask(hub, 1) if isinstance(reply, Update)]
        found.append({reply.site: reply.tensors["w"].tobytes() for reply in replies})
        pids = {reply.metrics["process"] for reply in replies}
        assert (pids == {os.getpid()}) == (runner is threads)
    assert len(found[0]) == 9
    assert found[0] == found[1]


def test_a_sites_state_survives_in_whichever_process_the_site_runs_next(tmp_path: Path) -> None:
    with running(ProcessRunner(sites_in(tmp_path), 2), 6) as hub:
        for round in range(1, 4):
            replies = ask(hub, round)
            assert [reply.metrics["count"] for reply in replies if isinstance(reply, Update)] == [
                round
            ] * 6


def test_a_process_that_dies_costs_the_site_that_it_was_at(tmp_path: Path) -> None:
    sites = sites_in(tmp_path, {"dies_at": "site-3"})
    with running(ProcessRunner(sites, 1), 12) as hub:
        failures = {
            reply.site: reply.reason for reply in ask(hub, 1) if isinstance(reply, SiteFailure)
        }
        assert list(failures) == ["site-3"]
        assert "ended by signal 9" in failures["site-3"]
        assert len(ask(hub, 2, ["site-1", "site-2"])) == 2


def test_a_process_that_died_while_it_was_idle_costs_no_site(tmp_path: Path) -> None:
    runner = ProcessRunner(sites_in(tmp_path), 1)
    with running(runner, 3) as hub:
        assert [type(reply) for reply in ask(hub, 1)] == [Update] * 3
        (first,) = runner._workers.values()
        first.process.kill()  # and not waited for: its lane may find the pipe open still
        assert [type(reply) for reply in ask(hub, 2)] == [Update] * 3
        assert first not in runner._workers.values()


def test_when_no_process_can_run_the_sites_are_told_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with running(ProcessRunner(sites_in(tmp_path), 1), 2) as hub:
        failures = [reply for reply in ask(hub, 1, quorum=0) if isinstance(reply, SiteFailure)]
    says = "no worker process takes its batch: the last ended with status 1"
    assert [failure.reason for failure in failures] == [says] * 2


def test_an_executor_that_a_worker_cannot_import_fails_with_the_reason(tmp_path: Path) -> None:
    sites = VirtualSites("no_such_package", tmp_path, tmp_path)
    with running(ProcessRunner(sites, 1), 2) as hub:
        replies = ask(hub, 1, quorum=0)
    failures = [reply for reply in replies if isinstance(reply, SiteFailure)]
    assert len(failures) == 2
    assert "`import no_such_package` failed here" in failures[0].reason


def test_processes_end_with_the_job_whatever_they_are_at(tmp_path: Path) -> None:
    runner = ProcessRunner(sites_in(tmp_path), 2)
    with running(runner, 4) as hub:
        ask(hub, 1)
        workers = [worker.process for worker in runner._workers.values()]
        assert workers
    assert all(worker.poll() is not None for worker in workers)


def test_ten_thousand_sites_cost_no_thread_and_no_folder_until_they_are_asked(
    tmp_path: Path,
) -> None:
    before = threading.active_count()
    with running(ThreadRunner(LocalSites(sites_in(tmp_path)), 2), 10_000) as hub:
        assert threading.active_count() <= before + 4
        assert not (tmp_path / "state").exists()
        asked = [f"site-{number}" for number in range(1, 10_001, 1000)]
        assert len(ask(hub, 1, asked)) == 10
        assert {folder.name for folder in (tmp_path / "state").iterdir()} == set(asked)


def test_a_batch_travels_as_bytes_and_back(tmp_path: Path) -> None:
    sites = sites_in(tmp_path)
    task = Message({"id": "1.1", "kind": "train", "round": 1}, MODEL)
    batch = Batch(task, ("site-1", "site-2"))
    about = Message({"sites": sites.as_json()})
    answers = list(unpacked(run_packed(packed([about, batch.message()]))))
    assert [answer.header["id"] for answer in answers] == ["1.1", "1.1"]
    expected = dict(LocalSites(sites_in(tmp_path / "again")).answers(batch))
    for site, answer in zip(batch.sites, answers, strict=True):
        np.testing.assert_array_equal(answer.tensors["w"], expected[site].tensors["w"])


def test_bytes_that_end_too_early_are_refused() -> None:
    content = packed([Message({"id": "1"}, MODEL)])
    with pytest.raises(ProtocolError, match="end in the middle of a message"):
        list(unpacked(content[:-1]))
