"""What a job writes after each round, and what it resumes from."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from prefect import flow
from prefect.filesystems import RemoteFileSystem

from prefect_federated.aggregators import weighted_mean
from prefect_federated.errors import (
    ConfigurationError,
    SnapshotCorrupt,
    SnapshotFailed,
    StaleController,
)
from prefect_federated.messages import Tensor, Update
from prefect_federated.model_file import Abandoned
from prefect_federated.tasks import snapshots, storage
from prefect_federated.tasks.background import current_background
from prefect_federated.tasks.federation import Federation, current_federation, federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshot_record import Pointer, Record, Row, Snapshot
from prefect_federated.tasks.snapshots import (
    ModelRef,
    State,
    load_model,
    publish,
    read_model,
    restore,
    snapshot,
)
from prefect_federated.tasks.storage import StoredModel, put_model

pytestmark = pytest.mark.usefixtures("prefect_api")

ROUNDS = 5
Between = Callable[[Path], object]


class Died(Exception):
    """What the job dies of in the middle of a round."""


@pytest.fixture
def run_job(tmp_path: Path) -> Callable[[Between], tuple[ModelRef, list[int]]]:
    """Runs a job that adds 1 a round and dies once in round 4, after `between` had its way.

    Returns where the model is, and the rounds that were begun.
    """
    begun: list[int] = []

    def run(between: Between) -> tuple[ModelRef, list[int]]:
        @flow(name="counting", retries=1)
        @takes(JobParameters)
        def counting(job: JobParameters) -> ModelRef:
            with federation(job) as fed:
                state = restore() or State(model={"w": np.zeros(3)})
                for number in range(state.round + 1, ROUNDS + 1):
                    begun.append(number)
                    updates = fed.broadcast("train", state.model, round=number)
                    model = weighted_mean(updates)
                    if number == 4 and begun.count(4) == 1:
                        snapshot_is_complete()
                        between(tmp_path / fed.hub.job)
                        raise Died
                    state = State(model=model, round=number)
                    snapshot(state)
                return publish(state)

        (tmp_path / "adds_one.py").write_text(
            "from prefect_federated import Update, executor\n"
            "@executor\n"
            "def train(model, site):\n"
            "    return Update({'w': model['w'] + 1}, metrics={'round': site.round})\n"
        )
        simulation = Simulation(("a", "b"), 2, tmp_path, tmp_path / "state")
        with pytest.MonkeyPatch.context() as patch, simulating(simulation):
            patch.syspath_prepend(tmp_path)
            return counting(executor="adds_one"), begun

    return run


def snapshot_is_complete() -> None:
    beside = current_background()
    assert beside is not None
    beside.wait()


def rounds_of(reference: ModelRef) -> list[object]:
    return [row["round"] for row in reference.history if row["kind"] == "train"]


def test_a_job_that_dies_resumes_after_its_last_snapshot(
    run_job: Callable[[Between], tuple[ModelRef, list[int]]],
) -> None:
    kept: list[str] = []
    reference, begun = run_job(
        lambda folder: kept.extend(p.name for p in folder.glob("*.safetensors"))
    )
    assert begun == [1, 2, 3, 4, 4, 5]
    assert sorted(kept) == ["round-00002-1.safetensors", "round-00003-1.safetensors"]
    np.testing.assert_array_equal(read_model(Path(reference.path))["w"], [5, 5, 5])
    assert rounds_of(reference) == [1, 2, 3, 4, 5]
    assert reference.size_bytes == Path(reference.path).stat().st_size


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x01"),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["truncated", "changed", "empty", "gone"],
)
def test_a_damaged_newest_snapshot_falls_back_to_the_one_before(
    damage: Callable[[Path], object],
    run_job: Callable[[Between], tuple[ModelRef, list[int]]],
) -> None:
    reference, begun = run_job(lambda folder: damage(folder / "round-00003-1.safetensors"))
    assert begun == [1, 2, 3, 4, 3, 4, 5]
    np.testing.assert_array_equal(read_model(Path(reference.path))["w"], [5, 5, 5])
    assert rounds_of(reference) == [1, 2, 3, 4, 5]


def test_a_job_whose_snapshots_are_all_damaged_does_not_begin_anew_by_itself(
    run_job: Callable[[Between], tuple[ModelRef, list[int]]],
) -> None:
    def damage(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"nothing")

    with pytest.raises(SnapshotCorrupt, match=r"after round 3 .*after round 2 ") as caught:
        run_job(damage)
    assert "is not what was written" in str(caught.value)


def test_a_damaged_pointer_does_not_begin_the_job_anew_by_itself(
    run_job: Callable[[Between], tuple[ModelRef, list[int]]],
) -> None:
    with pytest.raises(SnapshotCorrupt, match=r"snapshots.json .* Delete it to begin"):
        run_job(lambda folder: (folder / "snapshots.json").write_text("{"))


def test_every_kind_of_tensor_is_written_as_it_is(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    model: dict[str, Tensor] = {
        "fortran": np.asfortranarray(random.normal(size=(3, 4))),
        "slice": random.normal(size=(8, 8))[1::2, ::-3],
        "big_endian": np.arange(5, dtype=">f4"),
        "scalar": np.asarray(np.int64(7)),
        "empty": np.zeros((0, 2), np.float32),
        "flags": np.array([True, False]),
        "half": np.array([1.5], np.float16),
        "complex": np.array([1 + 2j], np.complex64),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    (tmp_path / "nothing.py").write_text(
        "from prefect_federated import Update, executor\n"
        "@executor\n"
        "def train(model, site):\n"
        "    return Update(model)\n"
    )

    @flow
    @takes(JobParameters)
    def writes(job: JobParameters) -> ModelRef:
        with federation(job) as fed:
            (reply,) = list(fed.broadcast("train", model, round=1))
            assert isinstance(reply, Update)
            return publish(State(model=reply.tensors, round=1))

    simulation = Simulation(("a",), 1, tmp_path, tmp_path / "state")
    with pytest.MonkeyPatch.context() as patch, simulating(simulation):
        patch.syspath_prepend(tmp_path)
        reference = writes(executor="nothing")
    got = read_model(Path(reference.path))
    assert got.keys() == model.keys()
    for name, array in model.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(got[name], array)
    assert load_model(reference.path).keys() == model.keys()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs what a flow does with one site that adds 1, once."""
    (tmp_path / "adds_one.py").write_text(
        "from prefect_federated import Update, executor\n"
        "@executor\n"
        "def train(model, site):\n"
        "    return Update({'w': model['w'] + 1})\n"
    )

    def run(body: Callable[[Federation], object], **options: Any) -> None:
        @flow(name="one-time", **options)
        @takes(JobParameters)
        def one_time(job: JobParameters) -> None:
            with federation(job) as fed:
                body(fed)

        simulation = Simulation(("a",), 1, tmp_path, tmp_path / "state")
        with pytest.MonkeyPatch.context() as patch, simulating(simulation):
            patch.syspath_prepend(tmp_path)
            one_time(executor="adds_one")

    return run


def one_round(fed: Federation, number: int) -> State:
    (reply,) = list(fed.broadcast("train", {"w": np.full(3, number - 1.0)}, round=number))
    assert isinstance(reply, Update)
    return State(reply.tensors, number)


def folder_of(fed: Federation, tmp_path: Path) -> Path:
    return tmp_path / fed.hub.job


def test_a_snapshot_is_written_while_the_next_round_goes_on(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_2_is_done, order = Event(), []

    def waits(path: str, *arguments: Any) -> StoredModel:
        assert round_2_is_done.wait(30)
        order.append(path.rpartition("/")[2])
        return put_model(path, *arguments)

    def body(fed: Federation) -> None:
        snapshot(one_round(fed, 1))
        state = one_round(fed, 2)
        order.append("round 2")
        round_2_is_done.set()
        snapshot(state)

    monkeypatch.setattr(snapshots, "put_model", waits)
    run(body)
    files = ["round-00001-1.safetensors", "round-00002-1.safetensors"]
    assert order == ["round 2", *files]


@pytest.mark.parametrize("rounds", [2, 1], ids=["at the next snapshot", "at the job's end"])
def test_a_snapshot_that_cannot_be_written_fails_the_job(
    rounds: int, run: Callable[..., None], tmp_path: Path
) -> None:
    done: list[int] = []

    def body(fed: Federation) -> None:
        (folder_of(fed, tmp_path) / "round-00001-1.safetensors").mkdir(parents=True)  # in the way
        for number in range(1, rounds + 1):
            snapshot(one_round(fed, number))
            done.append(number)

    with pytest.raises(SnapshotFailed, match=r"snapshot of round 1 could not be written: .*Error"):
        run(body)
    assert done == [1]


def test_a_full_disk_leaves_the_snapshot_before(run: Callable[..., None], tmp_path: Path) -> None:
    left: list[str] = []

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def body(fed: Federation) -> None:
        snapshot(one_round(fed, 1))
        snapshot_is_complete()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "write_model", full)
            snapshot(one_round(fed, 2))
            with pytest.raises(SnapshotFailed, match=r"round 2 .* No space left on device"):
                snapshot_is_complete()
        state = restore()
        assert state is not None
        assert state.round == 1
        left.extend(sorted(file.name for file in folder_of(fed, tmp_path).glob("*.safetensors")))

    run(body)
    assert left == ["round-00001-1.safetensors"]


def test_a_cancelled_job_does_not_wait_for_its_snapshot_to_be_written(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(BaseException):
        pass

    begun = Event()

    def endless(path: str, model: object, is_wanted: Callable[[], bool]) -> None:
        begun.set()
        while is_wanted():
            pass
        raise Abandoned

    def body(fed: Federation) -> None:
        snapshot(one_round(fed, 1))
        assert begun.wait(30)
        raise Cancelled

    monkeypatch.setattr(snapshots, "put_model", endless)
    with pytest.raises(Cancelled):
        run(body)


def test_a_newer_attempt_that_comes_while_a_snapshot_is_written_wins(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[str] = []

    def body(fed: Federation) -> None:
        def slow(*arguments: Any) -> StoredModel:
            stored = put_model(*arguments)
            Record(fed.hub.job, fed.hub.epoch + 1).claim()
            return stored

        snapshot(one_round(fed, 1))
        snapshot_is_complete()
        monkeypatch.setattr(snapshots, "put_model", slow)
        snapshot(one_round(fed, 2))
        for stale in (snapshot_is_complete, lambda: publish(State({}))):
            with pytest.raises(StaleController, match=r"attempt 2 .* attempt 1 stops"):
                stale()
        pointer = Record(fed.hub.job, 2).read()
        assert [found.round for found in pointer.newest] == [1]
        left.extend(file.name for file in folder_of(fed, tmp_path).glob("*.safetensors"))

    run(body)
    assert left == ["round-00001-1.safetensors"]


def test_extra_tensors_come_back_and_a_second_model_is_published(
    run: Callable[..., None], tmp_path: Path
) -> None:
    def body(fed: Federation) -> None:
        momentum, best = {"w": np.arange(3.0)}, {"w": np.ones(2, np.float32)}
        for number in (1, 2, 3):
            state = one_round(fed, number)
            snapshot(State(state.model, number, {"momentum": momentum, "best": best}))
        snapshot_is_complete()
        found = restore()
        assert found is not None
        assert list(found.extra) == ["momentum", "best"]
        np.testing.assert_array_equal(found.extra["momentum"]["w"], momentum["w"])
        assert not found.model["w"].flags.owndata  # it is the file's memory
        reference = publish(State(found.extra["best"], 3), name="best")
        assert Path(reference.path) == folder_of(fed, tmp_path) / "best.safetensors"
        np.testing.assert_array_equal(read_model(Path(reference.path))["w"], best["w"])
        names = sorted(file.name for file in folder_of(fed, tmp_path).glob("round-*.safetensors"))
        assert names == [
            f"round-0000{number}-1{name}.safetensors"
            for number in (2, 3)
            for name in (".best", ".momentum", "")
        ]
        for name in ("model", "a/b", ""):
            with pytest.raises(ConfigurationError, match="called"):
                snapshot(State({}, 4, {name: {}}))

    run(body)


def test_what_a_killed_process_left_is_deleted_when_the_job_comes_back(
    run: Callable[..., None], tmp_path: Path
) -> None:
    def body(fed: Federation) -> None:
        snapshot(one_round(fed, 1))
        snapshot_is_complete()
        left = [
            folder_of(fed, tmp_path) / name
            for name in ("round-00002-1.safetensors.part", "round-00002-1.safetensors")
        ]
        for file in left:
            file.write_bytes(b"half")
        assert restore() is not None
        assert not any(file.exists() for file in left)

    run(body)


def test_the_record_does_not_grow_with_the_rounds_and_gives_the_whole_table(
    run: Callable[..., None], tmp_path: Path
) -> None:
    def body(fed: Federation) -> None:
        record, sizes = Record(fed.hub.job, 1), []
        history: list[Row] = []
        for number in range(1, 301):
            history.append({"round": number, "kind": "train", "failures": "x" * 50})
            stored = StoredModel(path=f"round-{number}", sha256="0" * 64, size_bytes=1)
            found = Snapshot(round=number, rows=number, files={"model": stored})
            record.add(found, history)
            sizes.append((folder_of(fed, tmp_path) / "snapshots.json").stat().st_size)
        assert max(sizes[150:]) < 1.02 * max(sizes[:150])
        pointer = Record(fed.hub.job, 2).claim()
        assert record_rows(pointer, 300) == list(range(1, 301))
        assert record_rows(pointer, 123) == list(range(1, 124))
        # An attempt that begins before pieces that are full already writes them anew.
        record = Record(fed.hub.job, 2)
        record.go_back_to(pointer.newest[1:], history[:299])
        record.add(pointer.newest[0], [*history[:299], {"round": 300, "kind": "again"}])
        assert record.history(record.read(), 300)[-1] == {"round": 300, "kind": "again"}
        with pytest.raises(StaleController):
            Record(fed.hub.job, 1).add(pointer.newest[0], history)

    def record_rows(pointer: Pointer, rows: int) -> list[object]:
        found = Record(current_federation().hub.job, 2).history(pointer, rows)
        return [row["round"] for row in found]

    run(body)


def test_a_storage_that_takes_bytes_keeps_snapshots_too(run: Callable[..., None]) -> None:
    block = RemoteFileSystem(basepath="memory://snapshots")
    block.save("snapshots-in-memory", overwrite=True)

    def body(fed: Federation) -> None:
        assert restore() is None
        for number in (1, 2, 3):
            snapshot(one_round(fed, number))
        snapshot_is_complete()
        state = restore()
        assert state is not None
        assert state.round == 3
        np.testing.assert_array_equal(state.model["w"], np.full(3, 3.0))
        np.testing.assert_array_equal(
            load_model(f"{fed.hub.job}/round-00002-1.safetensors")["w"], 2
        )
        with pytest.raises(SnapshotCorrupt, match=r"round-00001-1.safetensors cannot be read"):
            load_model(f"{fed.hub.job}/round-00001-1.safetensors")

    run(body, result_storage=block)


def test_no_model_is_read_from_outside_the_result_storage(
    run: Callable[..., None], tmp_path: Path
) -> None:
    def body(fed: Federation) -> None:
        with pytest.raises(SnapshotCorrupt, match="outside the result storage"):
            load_model("/etc/passwd")

    run(body)


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model" * 9, b"\xff" * 64])
def test_a_file_that_is_no_model_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    for read in (read_model, lambda path: load_model(str(path))):
        with pytest.raises(SnapshotCorrupt, match=r"model.safetensors is not a .safetensors file"):
            read(file)
    with pytest.raises(SnapshotCorrupt, match=r"gone.safetensors cannot be read"):
        read_model(tmp_path / "gone.safetensors")
