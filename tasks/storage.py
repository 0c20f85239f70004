"""Files in Prefect's result storage: each is there whole or not at all.

With local storage (the default; a shared folder where there are several servers) models are written
and read without a copy of them in memory. Other storages take and give bytes.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect.results import get_default_result_storage, get_result_store
from pydantic import BaseModel

from prefect_federated.errors import SnapshotCorrupt, SnapshotFailed
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.model_file import map_model, model_bytes, model_in, sha256_of, write_model


class StoredModel(BaseModel):
    """A `.safetensors` file in Prefect's result storage.

    Args:
        path: Path in the storage; with local storage, of the file.
        sha256: Hex digest of the file.
        size_bytes: Size of the file.
    """

    path: str
    sha256: str
    size_bytes: int


class _Files(Protocol):
    """A storage block as a flow that is not async sees it; Prefect's types tell of coroutines."""

    def read_path(self, path: str) -> bytes: ...

    def write_path(self, path: str, content: bytes) -> object: ...


def put_model(
    path: str, model: Tensors, is_wanted: Callable[[], bool] = lambda: True
) -> StoredModel:
    """Writes a model's file.

    Raises:
        Abandoned: `is_wanted` said no.
        ProtocolError: a dtype or a name that such a file cannot hold.
        OSError: the disk is full or not to be written to; other storages raise errors of their own.
    """
    storage = _storage()
    if isinstance(storage, LocalFileSystem):
        file = _local(storage, path)
        written = write_model(file, model, is_wanted)
        return StoredModel(path=str(file), sha256=written.sha256, size_bytes=written.size_bytes)
    content = model_bytes(model)
    cast(_Files, storage).write_path(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return StoredModel(path=path, sha256=digest, size_bytes=len(content))


def put(path: str, content: bytes) -> None:
    """Writes a small file.

    Raises:
        OSError: the disk is full or not to be written to; other storages raise errors of their own.
    """
    storage = _storage()
    if not isinstance(storage, LocalFileSystem):  # an object store writes all or nothing by itself
        cast(_Files, storage).write_path(path, content)
        return
    file = _local(storage, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def put_result(path: str, content: bytes) -> None:
    """Writes a small file of a job's result.

    Raises:
        SnapshotFailed: it could not be written; says why.
    """
    try:
        put(path, content)
    except Exception as error:  # a storage may raise anything
        raise SnapshotFailed(
            f"{path} could not be written: {type(error).__name__}: {error}. Make room in Prefect's "
            "result storage, or mend what keeps it from being written to."
        ) from error


def get(path: str) -> bytes | None:
    """Returns a small file's content; None if there is no such file.

    Raises:
        SnapshotCorrupt: it cannot be read.
    """
    storage = _storage()
    try:
        if isinstance(storage, LocalFileSystem):
            return _local(storage, path).read_bytes()
        return cast(_Files, storage).read_path(path)
    except (FileNotFoundError, ValueError):  # the latter from some of Prefect's storages
        return None
    except OSError as error:
        raise SnapshotCorrupt(f"{path} cannot be read: {error}.") from error


def get_model(path: str) -> dict[str, Tensor]:
    """Returns the tensors of a model's file; with local storage they are the file's mapped memory.

    Raises:
        SnapshotCorrupt: it cannot be read, or is not such a file.
    """
    storage = _storage()
    try:
        if isinstance(storage, LocalFileSystem):
            return map_model(_local(storage, path))
        return model_in(cast(_Files, storage).read_path(path), path)
    except (OSError, ValueError) as error:
        raise SnapshotCorrupt(f"{path} cannot be read: {error}.") from error


def get_stored(stored: StoredModel) -> dict[str, Tensor]:
    """Returns the tensors of a model's file, if it is what was written.

    Raises:
        SnapshotCorrupt: it cannot be read, or holds other bytes.
    """
    storage = _storage()
    try:
        if isinstance(storage, LocalFileSystem):
            file = _local(storage, stored.path)
            size_bytes, digest = file.stat().st_size, sha256_of(file)
        else:
            content = cast(_Files, storage).read_path(stored.path)
            size_bytes, digest = len(content), hashlib.sha256(content).hexdigest()
    except (OSError, ValueError) as error:
        raise SnapshotCorrupt(f"{stored.path} cannot be read: {error}.") from error
    if digest != stored.sha256:
        raise SnapshotCorrupt(
            f"{stored.path} ({size_bytes:,} bytes) is not what was written "
            f"({stored.size_bytes:,} bytes)."
        )
    if isinstance(storage, LocalFileSystem):
        return map_model(file)
    return model_in(content, stored.path)


def path_in_storage(path: str) -> str:
    """Returns a path as `StoredModel.path` has it: with local storage, that of the file."""
    storage = _storage()
    return str(_local(storage, path)) if isinstance(storage, LocalFileSystem) else path


def delete(path: str) -> None:
    """Deletes a file, if it is there and the storage lets us."""
    storage = _storage()
    if isinstance(storage, LocalFileSystem):
        _local(storage, path).unlink(missing_ok=True)
    elif isinstance(storage, RemoteFileSystem):
        with contextlib.suppress(FileNotFoundError):
            storage.filesystem.rm(f"{storage.basepath.rstrip('/')}/{path}")


def delete_others(folder: str, pattern: str, kept: set[str]) -> None:
    """Deletes what a process that was killed has left of a folder's files, with local storage.

    Args:
        folder: The folder.
        pattern: Which files, such as `round-*`.
        kept: Paths, as `StoredModel.path` has them, of those that stay.
    """
    storage = _storage()
    if isinstance(storage, LocalFileSystem):
        for file in _local(storage, folder).glob(pattern):
            if str(file) not in kept:
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Keeps other processes out of this block, with local storage: a lock on the file `path`.

    Object stores have no locks: there, what is read in the block may be a moment old at its end.
    """
    storage = _storage()
    if not isinstance(storage, LocalFileSystem):
        yield
        return
    file = _local(storage, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # let go when the file is closed
        yield


def _storage() -> WritableFileSystem:
    own = get_result_store().result_storage
    return own or cast(WritableFileSystem, get_default_result_storage())


def _local(storage: LocalFileSystem, path: str) -> Path:
    base = Path(storage.basepath or ".").expanduser().resolve()
    file = (base / path).resolve()
    if not file.is_relative_to(base):
        raise SnapshotCorrupt(f"{path} cannot be read: it is outside the result storage {base}.")
    return file
