"""The state of a job after a round: written to Prefect's result storage, and read again.

The tensors go into a `.safetensors` file through the storage block; what is persisted as the
Prefect task's result is a reference to it. A small JSON file names the newest snapshots; it is
written last, so a job that dies while it writes resumes from the one before.
"""

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect.results import get_default_result_storage, get_result_store
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prefect_federated.errors import SnapshotCorrupt, StaleController
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.tasks.federation import current_federation

_KEPT = 2


@dataclass(frozen=True)
class State:
    """A job after a round.

    Args:
        model: The global model.
        round: The last round that is in it; 0 before the first.
    """

    model: Tensors
    round: int = 0


class ModelRef(BaseModel):
    """Where a model is: a `.safetensors` file in Prefect's result storage.

    Args:
        path: Path in the storage; with local storage, of the file.
        sha256: Hex digest of the file.
        size_bytes: Size of the file.
        round: The last round that is in it.
        history: The job's table: a row a call to the sites.
    """

    path: str
    sha256: str
    size_bytes: int
    round: int
    history: list[dict[str, bool | int | float | str | None]] = []


class _Snapshots(BaseModel):
    """The small JSON file: the newest snapshots, newest first, and the attempt that wrote it."""

    epoch: int = 0
    newest: list[ModelRef] = []


def snapshot(state: State) -> ModelRef:
    """Writes the job's state, so that it resumes after this round; returns where it is."""
    return write_snapshot.with_options(
        task_run_name=f"round {state.round} · snapshot",
        result_storage_key=f"{_job()}/round-{state.round}.json",
    )(_Handover(state))


class _Handover:
    """Hands a state to a Prefect task, which would keep what it is given after its end.

    Seen: with the state itself as parameter, the models of all earlier rounds stay in memory.
    """

    def __init__(self, state: State) -> None:
        self._states = [state]

    def take(self) -> State:
        return self._states.pop()


@task(name="snapshot", persist_result=True, result_serializer="json", cache_policy=NO_CACHE)
def write_snapshot(handover: _Handover) -> ModelRef:
    """Writes one snapshot and points to it; deletes the ones that are no longer needed.

    Raises:
        StaleController: a newer attempt of the job has written snapshots already.
    """
    state = handover.take()
    earlier, epoch = _read_pointer(), current_federation().hub.epoch
    if earlier.epoch > epoch:
        raise StaleController(
            f"attempt {earlier.epoch} of job {_job()} has written snapshots; attempt {epoch} stops."
        )
    history = list(current_federation().reporter.history)
    reference = _write(f"{_job()}/round-{state.round:05d}-{epoch}.safetensors", state)
    reference = reference.model_copy(update={"history": history})
    others = [ref for ref in earlier.newest if ref.path != reference.path]
    pointer = _Snapshots(epoch=epoch, newest=[reference, *others[: _KEPT - 1]])
    _put(_pointer_path(), pointer.model_dump_json().encode())
    for ref in others[_KEPT - 1 :]:
        _delete(ref.path)
    return reference.model_copy(update={"history": []})


def restore() -> State | None:
    """Returns the state after the last round that was snapshotted; None for a new job.

    Raises:
        SnapshotCorrupt: there are snapshots, and none of them can be read as it was written.
    """
    pointer = _read_pointer()
    problems = []
    for reference in pointer.newest:
        try:
            model = _read(reference)
        except SnapshotCorrupt as error:
            problems.append(str(error))
            continue
        current_federation().reporter.resume(reference.history, reference.round)
        return State(model=model, round=reference.round)
    if problems:
        raise SnapshotCorrupt(" ".join(problems))
    return None


def load_model(path: str) -> dict[str, Tensor]:
    """Returns the tensors of a `.safetensors` file in Prefect's result storage.

    Raises:
        SnapshotCorrupt: it is not there, or not such a file.
    """
    return _tensors(path, _read_bytes(path))


def read_model(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a `.safetensors` file.

    Raises:
        SnapshotCorrupt: it cannot be read, or is not such a file.
    """
    try:
        return _tensors(str(file), file.read_bytes())
    except OSError as error:
        raise SnapshotCorrupt(f"{file} cannot be read: {error}.") from error


def publish(state: State) -> ModelRef:
    """Writes the job's model, links it in the Prefect UI, and returns where it is."""
    fed = current_federation()
    reference = _write(f"{_job()}/model.safetensors", state)
    reference = reference.model_copy(update={"history": list(fed.reporter.history)})
    fed.reporter.link_model(
        f"file://{reference.path}",
        f"The global model after round {state.round}: {reference.path} "
        f"({reference.size_bytes:,} bytes, sha256 {reference.sha256})",
    )
    return reference


def _job() -> str:
    return current_federation().hub.job


def _pointer_path() -> str:
    return f"{_job()}/snapshots.json"


class _Files(Protocol):
    """A storage block as a flow that is not async sees it; Prefect's types tell of coroutines."""

    def read_path(self, path: str) -> bytes: ...

    def write_path(self, path: str, content: bytes) -> object: ...


def _storage() -> WritableFileSystem:
    own = get_result_store().result_storage
    return own or cast(WritableFileSystem, get_default_result_storage())


def _write(path: str, state: State) -> ModelRef:
    # safetensors writes an array's memory as it lies; in another order it would be another array
    model = {name: np.asarray(array, order="C") for name, array in state.model.items()}
    content = save(model)
    with ThreadPoolExecutor(1) as pool:  # both release the interpreter's lock
        digest = pool.submit(lambda: hashlib.sha256(content).hexdigest())
        written = _put(path, content)
    return ModelRef(
        path=written, sha256=digest.result(), size_bytes=len(content), round=state.round
    )


def _put(path: str, content: bytes) -> str:
    """Writes a file so that it is there whole or not at all; returns its path."""
    storage = _storage()
    if not isinstance(storage, LocalFileSystem):  # an object store does so by itself
        cast(_Files, storage).write_path(path, content)
        return path
    target = _local(storage, path)
    storage.write_path(f"{path}.part", content)
    return str(_local(storage, f"{path}.part").replace(target))


def _delete(path: str) -> None:
    storage = _storage()
    if isinstance(storage, LocalFileSystem):
        _local(storage, path).unlink(missing_ok=True)
    elif isinstance(storage, RemoteFileSystem):
        with contextlib.suppress(FileNotFoundError):
            storage.filesystem.rm(f"{storage.basepath.rstrip('/')}/{path}")


def _local(storage: LocalFileSystem, path: str) -> Path:
    return Path(storage.basepath or ".").expanduser().resolve() / path


def _read_bytes(path: str) -> bytes:
    try:
        return cast(_Files, _storage()).read_path(path)
    except (OSError, ValueError) as error:
        raise SnapshotCorrupt(f"{path} cannot be read: {error}.") from error


def _read(reference: ModelRef) -> dict[str, Tensor]:
    content = _read_bytes(reference.path)
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise SnapshotCorrupt(
            f"{reference.path} ({len(content):,} bytes) is not what was written after round "
            f"{reference.round} ({reference.size_bytes:,} bytes)."
        )
    return _tensors(reference.path, content)


def _tensors(path: str, content: bytes) -> dict[str, Tensor]:
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise SnapshotCorrupt(f"{path} is not a .safetensors file: {error}.") from error


def _read_pointer() -> _Snapshots:
    """Returns the job's snapshots; none only where there is no pointer: an error is an error."""
    path = _pointer_path()
    try:
        content = cast(_Files, _storage()).read_path(path)
    except (FileNotFoundError, ValueError):  # the latter from Prefect's local storage
        return _Snapshots()
    except OSError as error:
        raise SnapshotCorrupt(f"{path} cannot be read: {error}.") from error
    try:
        return _Snapshots.model_validate_json(content)
    except ValidationError as error:
        raise SnapshotCorrupt(
            f"{path} ({len(content):,} bytes) does not name the job's snapshots. Delete it to "
            "begin the job anew."
        ) from error
