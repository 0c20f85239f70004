"""Which snapshots a job has, and its table: small files beside the models.

The pointer (`snapshots.json`) names the newest snapshots. The table is kept in pieces that are
written once, so that what a snapshot costs does not grow with the number of rounds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pydantic
from pydantic import BaseModel, TypeAdapter, ValidationError

from prefect_federated.errors import SnapshotCorrupt, StaleController
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.storage import StoredModel, delete, delete_others, exclusive, get, put

_KEPT = 2
_ROWS_A_PIECE = 64

Row = dict[str, pydantic.JsonValue]
History = Sequence[Mapping[str, JsonValue]]
_Rows = TypeAdapter(list[Row])


class Snapshot(BaseModel):
    """One snapshot.

    Args:
        round: The last round that is in it.
        rows: Rows that the job's table had then.
        files: Its models by name: "model", and the state's extras.
    """

    round: int
    rows: int
    files: dict[str, StoredModel]

    def paths(self) -> set[str]:
        """Returns the paths of its files."""
        return {stored.path for stored in self.files.values()}


class Pointer(BaseModel):
    """The small JSON file.

    Args:
        epoch: The attempt that wrote it last.
        newest: The newest snapshots, newest first.
        sealed: Full pieces of the job's table.
        tail: The rows beyond them.
    """

    epoch: int = 0
    newest: list[Snapshot] = []
    sealed: int = 0
    tail: list[Row] = []


@dataclass(frozen=True)
class Record:
    """The record of a job's snapshots, as one attempt of the job sees it."""

    job: str
    epoch: int

    def read(self) -> Pointer:
        """Returns the job's snapshots; none only where there is no pointer: an error is an error.

        Raises:
            SnapshotCorrupt: it cannot be read.
            StaleController: a newer attempt of the job has written it.
        """
        content = get(self._pointer)
        if content is None:
            return Pointer()
        try:
            pointer = Pointer.model_validate_json(content)
        except ValidationError as error:
            raise SnapshotCorrupt(
                f"{self._pointer} ({len(content):,} bytes) does not name the job's snapshots. "
                "Delete it to begin the job anew."
            ) from error
        if pointer.epoch > self.epoch:
            raise StaleController(
                f"attempt {pointer.epoch} of job {self.job} has written snapshots; attempt "
                f"{self.epoch} stops."
            )
        return pointer

    def claim(self) -> Pointer:
        """Returns the job's snapshots; no earlier attempt can add one from here on.

        Raises:
            SnapshotCorrupt: they cannot be read.
            StaleController: a newer attempt of the job has claimed them.
        """
        with exclusive(self._lock):
            pointer = self.read()
            self._put(pointer)
        return pointer

    def add(self, new: Snapshot, history: History) -> None:
        """Makes a snapshot the newest one, and deletes what is no longer needed.

        Raises:
            StaleController: a newer attempt of the job has claimed the record.
        """
        with exclusive(self._lock):
            earlier = self.read()
            sealed = new.rows // _ROWS_A_PIECE
            for number in range(earlier.sealed, sealed):
                begin = number * _ROWS_A_PIECE
                piece = rows_of(history[begin : begin + _ROWS_A_PIECE])
                put(self._piece(number), _Rows.dump_json(piece))
            others = [old for old in earlier.newest if old.paths().isdisjoint(new.paths())]
            tail = rows_of(history[sealed * _ROWS_A_PIECE : new.rows])
            self._put(Pointer(newest=[new, *others[: _KEPT - 1]], sealed=sealed, tail=tail))
        for old in others[_KEPT - 1 :]:
            for path in old.paths():
                delete(path)

    def go_back_to(self, kept: list[Snapshot], history: list[Row]) -> None:
        """Forgets the snapshots newer than the first of `kept`, whose table is `history`.

        What processes that were killed have left behind is deleted.
        """
        with exclusive(self._lock):
            self.read()
            sealed = len(history) // _ROWS_A_PIECE
            self._put(Pointer(newest=kept, sealed=sealed, tail=history[sealed * _ROWS_A_PIECE :]))
        paths = {path for snapshot in kept for path in snapshot.paths()}
        delete_others(self.job, "round-*.safetensors", kept=paths)
        delete_others(self.job, "*.part", kept=set())

    def history(self, pointer: Pointer, rows: int) -> list[Row]:
        """Returns the first `rows` rows of the job's table.

        Raises:
            SnapshotCorrupt: a piece of it is not there, or not what was written.
        """
        found: list[Row] = []
        for number in range(pointer.sealed):
            try:
                found += _Rows.validate_json(get(self._piece(number)) or b"")
            except ValidationError as error:
                raise SnapshotCorrupt(
                    f"{self._piece(number)}, a piece of the job's table, is not what was written."
                ) from error
        return (found + pointer.tail)[:rows]

    def _put(self, pointer: Pointer) -> None:
        named = pointer.model_copy(update={"epoch": self.epoch})
        put(self._pointer, named.model_dump_json().encode())

    def _piece(self, number: int) -> str:
        return f"{self.job}/table-{number:05d}.json"

    @property
    def _pointer(self) -> str:
        return f"{self.job}/snapshots.json"

    @property
    def _lock(self) -> str:
        return f"{self.job}/snapshots.lock"


def rows_of(history: Iterable[Mapping[str, JsonValue]]) -> list[Row]:
    """Returns rows of a job's table as what is kept of them."""
    return _Rows.validate_python([dict(row) for row in history])
