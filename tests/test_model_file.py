"""Model files, against the safetensors library."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save

from prefect_federated.errors import ProtocolError, SnapshotCorrupt
from prefect_federated.messages import Tensor
from prefect_federated.model_file import (
    Abandoned,
    map_model,
    model_bytes,
    model_in,
    sha256_of,
    write_model,
)

RANDOM = np.random.default_rng(5)
CODES = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]


def model_of_all_kinds() -> dict[str, Tensor]:
    model: dict[str, Tensor] = {
        f"{code}/{number}": (RANDOM.normal(size=(3, number)) * 9).astype(code)
        for code in CODES
        for number in (1, 5)
    }
    return {**model, "Größe": np.asarray(7.5), "empty": np.zeros((0, 2)), "a\nb": np.ones(3, "f4")}


def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    model = model_of_all_kinds()
    written = write_model(tmp_path / "new" / "m.safetensors", model)
    content = (tmp_path / "new" / "m.safetensors").read_bytes()
    assert content == save(model) == model_bytes(model)
    assert (written.sha256, written.size_bytes) == (
        hashlib.sha256(content).hexdigest(),
        len(content),
    )
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_a_model_without_tensors_is_a_file_too(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {})
    assert load_file(tmp_path / "m") == {} == map_model(tmp_path / "m")


def test_arrays_in_any_order_of_memory_are_written_by_place(tmp_path: Path) -> None:
    model: dict[str, Tensor] = {
        "fortran": np.asfortranarray(RANDOM.normal(size=(3, 4))),
        "slice": RANDOM.normal(size=(8, 8))[1::2, ::-3],
        "big endian": np.arange(5, dtype=">f4"),
    }
    write_model(tmp_path / "m", model)
    for name, array in load_file(tmp_path / "m").items():
        np.testing.assert_array_equal(array, model[name])


def test_a_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    model = model_of_all_kinds()
    write_model(tmp_path / "m", model)
    got = map_model(tmp_path / "m")
    (tmp_path / "m").unlink()  # the mapping stays
    assert got.keys() == model.keys()
    for name, array in got.items():
        assert (array.dtype, array.shape) == (model[name].dtype, model[name].shape)
        assert not array.flags.writeable
        assert not array.flags.owndata
        np.testing.assert_array_equal(array, model[name])


def test_writable_arrays_leave_the_file_as_it_is(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {"w": np.ones(5)})
    before = sha256_of(tmp_path / "m")
    array = map_model(tmp_path / "m", is_writable=True)["w"]
    array += 1
    np.testing.assert_array_equal(array, np.full(5, 2.0))
    assert sha256_of(tmp_path / "m") == before


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    model = model_of_all_kinds()
    got = model_in(save(model, metadata={"format": "np"}), "m")
    for name, array in model.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("array", [np.zeros(2, np.complex128), np.array(["a"]), np.array([None])])
def test_a_dtype_that_the_format_lacks_leaves_no_file(array: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="tensor 'w' has dtype"):
        write_model(tmp_path / "m", {"w": array})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="a tensor"):
        write_model(tmp_path / "m", {name: np.zeros(2)})


def test_a_file_that_is_no_longer_wanted_is_left_as_it_was(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {"w": np.zeros(3)})
    before = (tmp_path / "m").read_bytes()
    answers = iter([True, True, False])
    with pytest.raises(Abandoned):
        write_model(tmp_path / "m", {"w": np.ones(1 << 20)}, lambda: next(answers))
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == before


def test_a_disk_that_fills_while_a_file_is_written_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is what a test has of a full disk; both end in an OSError."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from prefect_federated.model_file import write_model\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "write_model(Path(sys.argv[1]), {'w': np.zeros(1_000_000)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model" * 9, b"\xff" * 64])
def test_what_is_no_model_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(SnapshotCorrupt, match=r"/m is not a .safetensors file"):
        map_model(tmp_path / "m")


def framed(header: object, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(begin: int, end: int, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        framed([]),
        framed({"w": 3}),
        framed({"w": entry(0, 4)}, b"123"),
        framed({"w": entry(0, 4)}, b"12345"),
        framed({"w": entry(1, 4)}, b"1234"),
        framed({"w": entry(0, 2), "v": entry(1, 3)}, b"123"),
        framed({"w": entry(0, 4, "F32", [2])}, b"1234"),
        framed({"w": entry(0, 4, "F32", [-1])}, b"1234"),
        framed({"w": entry(0, 4, "F32", [True])}, b"1234"),
        framed({"w": entry(0, 2, "BF16", [1])}, b"12"),
        framed({"w": entry(0, 4, shape="4")}, b"1234"),
        framed({"w": {**entry(0, 4), "data_offsets": [0, True]}}, b"1234"),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{",
    ],
)
def test_a_header_that_contradicts_itself_is_refused(content: bytes) -> None:
    with pytest.raises(SnapshotCorrupt, match=r"m is not a .safetensors file"):
        model_in(content, "m")


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: framed({}, rest)))
def test_no_bytes_do_harm(content: bytes) -> None:
    try:
        found = model_in(content, "m")
    except SnapshotCorrupt:
        return
    assert load(content).keys() == found.keys()


def test_a_model_larger_than_the_memory_is_averaged_written_and_read(tmp_path: Path) -> None:
    """Shared mappings of files do not count to RLIMIT_DATA; a process's own memory does."""
    program = Path(__file__).with_name("larger_than_memory.py")
    limit = 400 << 20  # NumPy and this project's modules take less than half of it

    def run(folder: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(program), str(tmp_path / "m.safetensors")],
            capture_output=True,
            text=True,
            cwd=program.parents[1],
            env={
                **os.environ,
                "PREFECT_FEDERATED_TENSORS_ON_DISK": folder,
                "OPENBLAS_NUM_THREADS": "1",
            },
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )

    on_disk = run(str(tmp_path))
    assert on_disk.returncode == 0, on_disk.stderr
    assert on_disk.stdout.split() == ["480000000", "2.0"]
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    in_memory = run("")
    assert "OutOfSpace: no memory for a tensor of" in in_memory.stderr
