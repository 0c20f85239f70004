"""Where tensors' memory comes from: the process's own, or files on disk for models beyond memory.

The setting `PREFECT_FEDERATED_TENSORS_ON_DISK` names a folder; arrays of 1 MiB and more then lie in
files there, mapped into memory, which the system writes out and reads back as it needs room. The
files have no name, so nothing is left of them when their process ends, however it ends.
"""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from prefect_federated.errors import ConfigurationError, OutOfSpace
from prefect_federated.messages import Tensor, human_bytes

SETTING = "PREFECT_FEDERATED_TENSORS_ON_DISK"
SMALLEST_ON_DISK = 1 << 20
"""Bytes from which on an array lies on disk; a file for less would cost more than it saves."""


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """Returns an array whose values are undefined, in memory or, by the setting, on disk.

    Raises:
        OutOfSpace: there is not enough memory, or the disk is full.
        ConfigurationError: the setting does not name a folder in which files can be made.
        ValueError: a shape that no array can have.
    """
    return _allocated(shape, np.dtype(dtype), np.empty)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
    """Returns an array of zeros, in memory or, by the setting, on disk.

    Raises:
        OutOfSpace: there is not enough memory, or the disk is full.
        ConfigurationError: the setting does not name a folder in which files can be made.
        ValueError: a shape that no array can have.
    """
    return _allocated(shape, np.dtype(dtype), np.zeros)  # a new file reads as zeros, too


def _allocated(
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    in_memory: Callable[[tuple[int, ...], np.dtype[np.generic]], Tensor],
) -> Tensor:
    folder = _folder()
    size = math.prod(shape) * dtype.itemsize
    try:
        if folder is None or size < SMALLEST_ON_DISK or min(shape, default=0) < 0:
            return in_memory(shape, dtype)
        return np.ndarray(shape, dtype, buffer=_mapped(folder, size))
    except MemoryError as error:
        raise OutOfSpace(f"no memory for a tensor of {human_bytes(size)}: {error}.") from error


def _folder() -> Path | None:
    # Read here and not by `settings`, which stands above the modules that need memory.
    named = os.environ.get(SETTING)
    return Path(named) if named else None


def _mapped(folder: Path, size: int) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            # Without its blocks reserved, a full disk would end the process by a signal (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OverflowError as error:  # from mmap: beyond what a size can be
        raise ValueError(f"a tensor of {size} bytes: {error}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
            raise OutOfSpace(
                f"no room for a tensor of {human_bytes(size)} in {folder} ({SETTING}): "
                f"{error.strerror}. Make room there, or name a folder on a larger disk."
            ) from error
        raise ConfigurationError(
            f"{SETTING} is {str(folder)!r}, where no file can be made: {error.strerror}. Name a "
            "folder that exists and that this process may write to."
        ) from error
