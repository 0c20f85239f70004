"""Tensors in memory and on disk."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError, OutOfSpace
from prefect_federated.memory import SETTING, empty, zeros

LARGE = (1 << 18, 2)  # of float64: 4 MiB


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SETTING, str(tmp_path))
    return tmp_path


def open_files() -> list[str]:
    """The files that are mapped into this process, with those that have no name any more."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]


def test_without_the_setting_tensors_are_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    array = empty(LARGE, np.float64)
    assert (array.shape, array.dtype) == (LARGE, np.dtype(np.float64))
    assert array.base is None
    assert not any(str(tmp_path) in line for line in open_files())
    np.testing.assert_array_equal(zeros((3,), np.float32), np.zeros(3, np.float32))


def test_a_large_tensor_lies_in_a_file_without_a_name(on_disk: Path) -> None:
    array = empty(LARGE, np.float64)
    assert any(str(on_disk) in line and "(deleted)" in line for line in open_files())
    assert list(on_disk.iterdir()) == []
    array[:] = 3.5
    assert array.sum() == 3.5 * array.size
    del array
    assert not any(str(on_disk) in line for line in open_files())


def test_a_new_tensor_on_disk_is_zero(on_disk: Path) -> None:
    assert not zeros(LARGE, np.complex64).any()


@pytest.mark.parametrize("shape", [(), (0,), (0, 1 << 30), (1000,)])
def test_small_tensors_stay_in_memory(on_disk: Path, shape: tuple[int, ...]) -> None:
    assert empty(shape, np.float32).shape == shape
    assert not any(str(on_disk) in line for line in open_files())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_before_anything_is_written(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfSpace, match=r"no room for a tensor of 4.2 MB in .*: (No space|Disk)"):
        empty(LARGE, np.float64)


def test_the_disks_room_is_reserved_when_the_tensor_is_made(on_disk: Path) -> None:
    """Otherwise a full disk would end the process at some later write, by SIGBUS."""
    free_bytes = os.statvfs(on_disk).f_bavail * os.statvfs(on_disk).f_frsize
    with pytest.raises(OutOfSpace, match="no room"):
        empty((free_bytes * 2,), np.uint8)
    assert list(on_disk.iterdir()) == []


def test_more_than_the_memory_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    for make in (empty, zeros):
        with pytest.raises(OutOfSpace, match="no memory for a tensor of"):
            make((1 << 60,), np.uint8)


@pytest.mark.parametrize("setting", ["", "/tmp"])
@pytest.mark.parametrize("shape", [(-1,), (1 << 62, 1 << 62), (-(1 << 20), -(1 << 20))])
def test_an_impossible_shape_is_a_value_error(
    setting: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, setting)
    with pytest.raises((ValueError, OutOfSpace)):
        empty(shape, np.float64)


def test_a_missing_folder_is_named(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, str(on_disk / "gone"))
    with pytest.raises(ConfigurationError, match=rf"{SETTING} is '.*gone'.* No such file"):
        empty(LARGE, np.float64)
