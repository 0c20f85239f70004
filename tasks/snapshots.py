"""The state of a job after a round: written to Prefect's result storage, and read again.

A snapshot is written while the next round is already on its way, as a Prefect task of its own. What
holds at any moment, whatever is killed:

- The pointer names at most two snapshots, and each was whole before it was named. A job that dies
  while it writes resumes from the one before.
- `snapshot` returns when the snapshot before this one is complete. So at most one round is lost
  that had been aggregated: the one whose snapshot was being written.
- An error in writing fails the job, at the next snapshot or at its end; no job completes whose last
  snapshot was not written.
- The pointer carries the epoch of the attempt that wrote it. It is compared and replaced under a
  lock (local storage), so a controller that a newer attempt has replaced changes nothing any more.
- Files are not forced to disk: a power failure may damage the newest ones. Each is checked against
  its digest, and the snapshot before is taken if it does not match.

The tensors go into `.safetensors` files; what Prefect persists as the task's result is a reference.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from prefect_federated.errors import (
    ConfigurationError,
    SnapshotCorrupt,
    SnapshotFailed,
    StaleController,
)
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.model_file import Abandoned, map_model
from prefect_federated.tasks.background import Background, current_background
from prefect_federated.tasks.federation import current_federation
from prefect_federated.tasks.snapshot_record import History, Record, Row, Snapshot, rows_of
from prefect_federated.tasks.storage import (
    StoredModel,
    delete,
    get_model,
    get_stored,
    path_in_storage,
    put_model,
)

_MODEL = "model"


@dataclass(frozen=True)
class State:
    """A job after a round.

    Args:
        model: The global model.
        round: The last round that is in it; 0 before the first.
        extra: Further named tensors from which the job resumes, such as an optimizer's, or the best
            model so far; a name has letters, digits, `_` and `-`, and is not "model".
    """

    model: Tensors
    round: int = 0
    extra: Mapping[str, Tensors] = field(default_factory=dict)


class ModelRef(StoredModel):
    """Where a model is: a `.safetensors` file in Prefect's result storage.

    Args:
        round: The last round that is in it.
        history: The job's table: a row a call to the sites.
        best_path: Path of the best model, where the job has looked for one.
        best_round: The last round that is in that one.
    """

    round: int
    history: list[Row] = Field(default_factory=list)
    best_path: str | None = None
    best_round: int | None = None


def snapshot(state: State) -> None:
    """Begins to write the job's state, so that it resumes after this round.

    Returns when the snapshot before is complete. The tensors must not change until the next call,
    or the end of the job, which waits for this one.

    Raises:
        SnapshotFailed: the snapshot before could not be written.
        StaleController: a newer attempt of the job has written snapshots already.
    """
    for name in state.extra:
        _check_name(name)
    if _MODEL in state.extra:
        raise ConfigurationError("extra tensors are called 'model', as the model itself is.")
    fed, beside = current_federation(), current_background()
    fed.events.aggregated()
    handover = _Handover(state, fed.reporter.history, beside)
    written = write_snapshot.with_options(
        task_run_name=f"round {state.round} · snapshot",
        result_storage_key=_path(f"round-{state.round}.json"),
    )
    if beside is None:
        written(handover)
    else:
        beside.begin(lambda: written.submit(handover))


class _Handover:
    """Hands a state to a Prefect task, which would keep what it is given after its end.

    Seen: with the state itself as parameter, the models of all earlier rounds stay in memory.
    """

    def __init__(self, state: State, history: History, beside: Background | None) -> None:
        self._given = [(state, history, len(history))]  # the history grows while this is written
        self._beside = beside

    def take(self) -> tuple[State, History, int]:
        return self._given.pop()

    def is_wanted(self) -> bool:
        return self._beside is None or self._beside.is_wanted


@task(name="snapshot", persist_result=True, result_serializer="json", cache_policy=NO_CACHE)
def write_snapshot(handover: _Handover) -> ModelRef:
    """Writes one snapshot and points to it; deletes the ones that are no longer needed.

    Raises:
        StaleController: a newer attempt of the job has written snapshots already.
        SnapshotFailed: it could not be written.
    """
    state, history, rows = handover.take()
    with _writing(f"the snapshot of round {state.round}"):
        _record().read()  # whoever is stale need not write at all
        files = {
            name: put_model(_file(state.round, name), tensors, handover.is_wanted)
            for name, tensors in {_MODEL: state.model, **state.extra}.items()
        }
        try:
            _record().add(Snapshot(round=state.round, rows=rows, files=files), history)
        except StaleController:  # it came between; what was written now belongs to nobody
            for stored in files.values():
                delete(stored.path)
            raise
    return ModelRef(**files[_MODEL].model_dump(), round=state.round)


def restore() -> State | None:
    """Returns the state after the last round that was snapshotted; None for a new job.

    From here on an earlier attempt of the job cannot write a snapshot any more. With local storage
    the tensors are the mapped memory of the snapshot's files; they are read-only.

    Raises:
        SnapshotCorrupt: there are snapshots, and none of them can be read as it was written.
        SnapshotFailed: the storage is not to be written to.
        StaleController: a newer attempt of the job has written snapshots already.
    """
    record, problems = _record(), []
    with _writing("the note that this attempt has begun"):
        pointer = record.claim()
    for place, found in enumerate(pointer.newest):
        try:
            tensors = {name: get_stored(stored) for name, stored in found.files.items()}
            history = record.history(pointer, found.rows)
        except SnapshotCorrupt as error:
            problems.append(f"The snapshot after round {found.round} is of no use: {error}")
            continue
        with _writing("the note of where this attempt begins"):
            record.go_back_to(pointer.newest[place:], history)
        current_federation().reporter.resume(history, found.round)
        return State(tensors.pop(_MODEL), found.round, tensors)
    if problems:
        raise SnapshotCorrupt(" ".join(problems))
    return None


def load_model(path: str) -> dict[str, Tensor]:
    """Returns the tensors of a `.safetensors` file in Prefect's result storage; read-only.

    With local storage they are the file's mapped memory: it may be replaced or deleted while they
    are in use, but not written into.

    Raises:
        SnapshotCorrupt: it is not there, or not such a file.
    """
    return get_model(path)


def read_model(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a `.safetensors` file as its mapped memory.

    The arrays may be changed; the file stays as it is.

    Raises:
        SnapshotCorrupt: it cannot be read, or is not such a file.
    """
    return map_model(file, is_writable=True)


def publish(state: State, name: str = _MODEL) -> ModelRef:
    """Writes a model of the job, links it in the Prefect UI, and returns where it is.

    Args:
        state: The job after a round.
        name: What the model is called: the file is `NAME.safetensors` in the job's folder.

    Raises:
        SnapshotFailed: it could not be written.
        StaleController: a newer attempt of the job has written snapshots already.
    """
    _check_name(name)
    fed = current_federation()
    with _writing(f"the model {name!r} after round {state.round}"):
        _record().read()
        stored = put_model(_path(f"{name}.safetensors"), state.model)
    fed.reporter.link_model(
        f"file://{stored.path}",
        f"The global model after round {state.round}: {stored.path} "
        f"({stored.size_bytes:,} bytes, sha256 {stored.sha256})",
    )
    history = rows_of(fed.reporter.history)
    return ModelRef(**stored.model_dump(), round=state.round, history=history)


def stored_at(name: str) -> str:
    """Returns the path in Prefect's result storage of a file in the running job's folder."""
    return path_in_storage(_path(name))


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turns what a storage raises, which may be anything, into an error of ours."""
    try:
        yield
    except (StaleController, SnapshotCorrupt):
        raise
    except Abandoned as error:
        raise SnapshotFailed(f"{what} was left unfinished, because the job ends.") from error
    except Exception as error:
        raise SnapshotFailed(
            f"{what} could not be written: {type(error).__name__}: {error}. Make room in Prefect's "
            "result storage, or mend what keeps it from being written to; the job resumes from its "
            "snapshot before."
        ) from error


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ConfigurationError(
            f"a model is called {name!r}; its name may have letters, digits, '_' and '-' only."
        )


def _record() -> Record:
    hub = current_federation().hub
    return Record(hub.job, hub.epoch)


def _path(name: str) -> str:
    return f"{current_federation().hub.job}/{name}"


def _file(round: int, name: str) -> str:
    suffix = "" if name == _MODEL else f".{name}"
    return _path(f"round-{round:05d}-{current_federation().hub.epoch}{suffix}.safetensors")
