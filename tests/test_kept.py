"""What a site keeps by round, through kills, repeated rounds and lost files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError, SnapshotCorrupt
from prefect_federated.kept import Kept
from prefect_federated.messages import Tensor


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_was_kept_is_read_exactly_in_every_dtype_and_shape(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "complex": np.array([1 + 2j], np.complex64),
        "yes": np.array([[True, False]]),
        "half": np.array([1.5], np.float16),
    }
    Kept(tmp_path, "control").write(4, tensors)

    read = Kept(tmp_path, "control").read(4)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def test_two_names_do_not_see_each_other(tmp_path: Path) -> None:
    Kept(tmp_path, "control").write(1, {"w": np.zeros(1)})
    assert Kept(tmp_path, "personal").newest_before(2) is None


def test_the_newest_before_a_round_is_never_the_round_itself(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "personal")
    assert kept.newest_before(9) is None
    kept.write(2, {"w": np.zeros(1)})
    kept.write(10, {"w": np.ones(1)}, after=2)
    assert [kept.newest_before(number) for number in (2, 3, 10, 11)] == [None, 2, 2, 10]


def test_only_the_rounds_that_one_may_start_from_stay(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "control")
    for number, after in ((1, None), (2, 1), (3, 2), (4, 2), (5, 2), (6, 5)):
        kept.write(number, {"w": np.full(1, number)}, after)
    # 3 and 4 never counted; 2 is where 5 began, should the controller come back from before it.
    assert files(tmp_path) == ["2.safetensors", "5.safetensors", "6.safetensors"]


def test_a_controller_that_is_a_round_behind_finds_what_it_starts_from(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "control")
    for number in (1, 2, 3):
        kept.write(number, {"w": np.full(1, number)}, number - 1 or None)
    kept.write(2, {"w": np.full(1, 20)}, after=1)  # done again; round 3 is undone
    assert files(tmp_path) == ["1.safetensors", "2.safetensors"]
    np.testing.assert_array_equal(kept.read(2)["w"], [20])


def test_a_round_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "control")
    kept.write(3, {"w": np.zeros(1)})
    with pytest.raises(ConfigurationError, match=r"nothing of round 2 \(it has: 3\)"):
        kept.read(2)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "control")
    kept.write(3, {"w": np.zeros(100)})
    file = tmp_path / "kept" / "control" / "3.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SnapshotCorrupt, match=r"3\.safetensors"):
        kept.read(3)


def test_a_process_killed_while_it_writes_leaves_the_round_before(tmp_path: Path) -> None:
    Kept(tmp_path, "control").write(1, {"w": np.ones(3)})
    code = """if True:
        import itertools, sys
        from pathlib import Path
        import numpy as np
        from prefect_federated.kept import Kept
        kept = Kept(Path(sys.argv[1]), "control")
        for number in itertools.count(2):
            kept.write(number, {"w": np.full(300_000, float(number))}, number - 1)
            print(number, flush=True)
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer:
        lines = [writer.stdout.readline() for _ in range(20)]  # it is writing the next one
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
    written = max(int(line) for line in lines if line.endswith("\n"))

    kept = Kept(tmp_path, "control")
    newest = kept.newest_before(10**9)
    assert newest is not None
    assert newest in (written, written + 1)
    for number in (newest, newest - 1):
        np.testing.assert_array_equal(kept.read(number)["w"], np.full(300_000, float(number)))
    kept.write(newest + 1, {"w": np.zeros(1)}, newest)  # what a kill has left is in nobody's way
    np.testing.assert_array_equal(kept.read(newest + 1)["w"], [0])
