"""What a job writes after each round, and what it resumes from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from prefect_federated.aggregators import weighted_mean
from prefect_federated.errors import SnapshotCorrupt
from prefect_federated.messages import Tensor, Update
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import (
    ModelRef,
    State,
    load_model,
    publish,
    read_model,
    restore,
    snapshot,
)

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
            return snapshot(State(model=reply.tensors, round=1))

    simulation = Simulation(("a",), 1, tmp_path, tmp_path / "state")
    with pytest.MonkeyPatch.context() as patch, simulating(simulation):
        patch.syspath_prepend(tmp_path)
        reference = writes(executor="nothing")
    assert reference.history == []  # what Prefect persists is small
    got = read_model(Path(reference.path))
    assert got.keys() == model.keys()
    for name, array in model.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(got[name], array)
    assert load_model(reference.path).keys() == model.keys()


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model" * 9, b"\xff" * 64])
def test_a_file_that_is_no_model_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    for read in (read_model, lambda path: load_model(str(path))):
        with pytest.raises(SnapshotCorrupt, match=r"model.safetensors is not a .safetensors file"):
            read(file)
    with pytest.raises(SnapshotCorrupt, match=r"gone.safetensors cannot be read"):
        read_model(tmp_path / "gone.safetensors")
