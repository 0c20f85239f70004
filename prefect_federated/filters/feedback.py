"""What an encoding did not send, kept to be added to what is sent next: error feedback.

    sent(t) = decode(encode(change(t) + residual(t - 1)))
    residual(t) = change(t) + residual(t - 1) - sent(t)

So the sum of what was sent differs from the sum of the changes by the last residual only.

With a state folder the residual lives in a safetensors file there, read through the page cache and
written piece by piece, and survives a restart. A round that is done again (the controller came
back, or the site's process died before its update counted) starts from the residual before that
round, not from the one that its first attempt left. Without a state folder it is kept in memory,
for the last round only.

Source: Seide et al. 2014, "1-Bit Stochastic Gradient Descent", section 3.1; Karimireddy et al.
2019, "Error Feedback Fixes SignSGD", Algorithm 2 (there with the step size inside the change).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import quote

import numpy as np

from prefect_federated.filters.blocks import Floats
from prefect_federated.filters.passage import Passage

_log = logging.getLogger("prefect_federated.site")

_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
_HEADER_BYTES = 64 << 20  # of a residual's file at most


@dataclass(frozen=True)
class _Residual:
    """Residuals of one round by tensor, in memory or mapped from a file."""

    round: int
    flat: Floats
    spans: Mapping[str, tuple[int, int]]

    def of(self, name: str, size: int) -> Floats | None:
        start, end = self.spans.get(name, (0, 0))
        return self.flat[start:end] if end - start == size else None


class Memory:
    """Residuals of one filter that are kept in memory, by site and kind of site task."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, str], _Residual] = {}

    def newest(self, passage: Passage) -> _Residual | None:
        """Returns the residual to start from; None if there is none from before this round."""
        kept = self._kept.get((passage.site, passage.kind))
        return kept if kept is not None and _is_before(kept.round, passage.round) else None

    def keep(self, passage: Passage, residual: _Residual) -> None:
        """Keeps a round's residual, in the place of the last one."""
        self._kept[passage.site, passage.kind] = residual


class Feedback:
    """The residuals of one message's encoding: those from before, and those to keep.

    Used as a context: the new residuals take the place of the old ones only if the encoding ends
    without an error.

    Args:
        filter: The filter's name, for the file.
        passage: Which site, kind and round.
        memory: Where the residuals are if the passage has no state folder.
        sizes: Tensor -> elements, in the order in which `keep` is called for them.
    """

    def __init__(
        self, filter: str, passage: Passage, memory: Memory, sizes: Mapping[str, int]
    ) -> None:
        self._passage = passage
        self._memory = memory
        self._sizes = sizes
        self._old: _Residual | None = None
        self._flat: Floats | None = None
        self._file: BinaryIO | None = None
        self._kept = 0
        self._paths: tuple[Path, Path, Path] | None = None
        if passage.state is not None:
            folder = passage.state / "filters"
            stem = f"{filter}.{quote(passage.kind, safe='')}"
            self._paths = (
                folder / f"{stem}.safetensors",
                folder / f"{stem}.before.safetensors",
                folder / f"{stem}.part",
            )

    def before(self, name: str) -> Floats | None:
        """Returns what of a tensor was not sent so far, flat; None if nothing is known."""
        return None if self._old is None else self._old.of(name, self._sizes[name])

    def keep(self, piece: Floats) -> None:
        """Keeps the next piece of what is not sent."""
        if self._file is not None:
            self._file.write(piece.data)
        elif self._flat is not None:
            self._flat[self._kept : self._kept + piece.size] = piece
        self._kept += piece.size

    def __enter__(self) -> "Feedback":
        total = sum(self._sizes.values())
        if self._paths is None:
            self._old = self._memory.newest(self._passage)
            self._flat = np.empty(total, np.float32)
            return self
        newest, before, part = self._paths
        self._old = _read(newest, self._passage.round) or _read(before, self._passage.round)
        newest.parent.mkdir(parents=True, exist_ok=True)
        self._file = part.open("wb")
        self._file.write(_table(self._sizes, self._passage.round))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._paths is None or self._file is None:
            if error is None and self._flat is not None:
                spans = _spans(self._sizes)
                kept = _Residual(self._passage.round, self._flat, spans)
                self._memory.keep(self._passage, kept)
            return
        newest, before, part = self._paths
        self._file.close()
        if error is not None:
            part.unlink(missing_ok=True)
            return
        last = _round_of(newest)
        if last is not None and _is_before(last, self._passage.round):
            newest.replace(before)
        part.replace(newest)


def _is_before(kept: int, now: int) -> bool:
    return now == 0 or kept < now


def _spans(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    spans, start = {}, 0
    for name, size in sizes.items():
        spans[name] = (start, start + size)
        start += size
    return spans


def _table(sizes: Mapping[str, int], round: int) -> bytes:
    """Returns the beginning of a safetensors file of flat float32 tensors."""
    table: dict[str, object] = {"__metadata__": {"round": str(round)}}
    for name, (start, end) in _spans(sizes).items():
        table[name] = {"dtype": "F32", "shape": [end - start], "data_offsets": [start * 4, end * 4]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_table(path: Path) -> tuple[int, dict[str, int], int]:
    """Returns a file's round, each tensor's elements, and where the first one begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        table = json.loads(file.read(length))
    kept = int(table.pop("__metadata__")["round"])
    return kept, {name: int(entry["shape"][0]) for name, entry in table.items()}, 8 + length


def _round_of(path: Path) -> int | None:
    try:
        return _read_table(path)[0]
    except _DAMAGED:
        return None


def _read(path: Path, now: int) -> _Residual | None:
    """Maps a residual's file; None if there is none from before this round, or it is damaged."""
    if not path.exists():
        return None
    try:
        kept, sizes, offset = _read_table(path)
        total = sum(sizes.values())
        if path.stat().st_size != offset + 4 * total:
            raise ValueError(f"{path.stat().st_size:,} bytes; {offset + 4 * total:,} expected")
        if not _is_before(kept, now):
            return None
        flat = np.memmap(path, np.float32, "r", offset, (total,)) if total else np.empty(0, "f4")
    except _DAMAGED as error:
        _log.warning(
            "%s is not readable (%s): what earlier rounds left unsent is not made up for",
            path.name,
            error,
        )
        return None
    return _Residual(kept, flat, _spans(sizes))
