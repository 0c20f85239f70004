"""Models in `.safetensors` files: written from the tensors' own memory, read by mapping the file.

    file = length of the header (8 bytes, little endian) + header (JSON) + the tensors' memory

Nothing here builds a whole file in memory, so a model may be larger than what is free.

Source: the safetensors format, https://github.com/huggingface/safetensors
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from prefect_federated.errors import ProtocolError, SnapshotCorrupt
from prefect_federated.frames import Limits
from prefect_federated.messages import JsonValue, Tensor, Tensors
from prefect_federated.specs import DTYPE_OF, TensorSpec, read_spec, specs_of

_PIECE_BYTES = 1 << 20
_LONGEST_HEADER_BYTES = 100_000_000  # what safetensors itself accepts
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_ORDER = ("U64", "I64", "F64", "C64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")

_Bytes: TypeAlias = bytes | mmap.mmap


class Abandoned(Exception):
    """A file was no longer wanted while it was written."""


@dataclass(frozen=True)
class Written:
    """What was written: the SHA-256 of all bytes (hex) and their number."""

    sha256: str
    size_bytes: int


def write_model(
    target: Path, model: Tensors, is_wanted: Callable[[], bool] = lambda: True
) -> Written:
    """Writes a model's file so that it is there whole or not at all.

    Args:
        target: The file; its folder is made if need be.
        model: The tensors, which must not change meanwhile.
        is_wanted: Asked between the pieces; when it says no, nothing is left of the file.

    Raises:
        Abandoned: `is_wanted` said no.
        ProtocolError: a dtype or a name that such a file cannot hold.
        OSError: the disk is full, or the folder is not to be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with part.open("wb", buffering=0) as file:
            for piece in _pieces(model):
                if not is_wanted():
                    raise Abandoned(str(target))
                digest.update(piece)
                size_bytes += piece.nbytes
                while piece.nbytes:  # one write may take less than it was given
                    piece = piece[file.write(piece) :]
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return Written(digest.hexdigest(), size_bytes)


def model_bytes(model: Tensors) -> bytes:
    """Returns what a model's file consists of, for a storage that takes it as a whole.

    Raises:
        ProtocolError: a dtype or a name that such a file cannot hold.
    """
    return b"".join(_pieces(model))


def _pieces(model: Tensors) -> Iterator[memoryview]:
    """Yields header and tensors in pieces that the processor's cache holds."""
    specs = specs_of(model)
    # By falling size of the dtype, so that each array is aligned; the order of safetensors itself.
    names = sorted(specs, key=lambda name: (_ORDER.index(specs[name].dtype), name))
    yield memoryview(_header({name: specs[name] for name in names}))
    for name in names:
        memory = _memory_of(model[name], DTYPE_OF[specs[name].dtype])
        for start in range(0, memory.nbytes, _PIECE_BYTES):
            yield memory[start : start + _PIECE_BYTES]


def _header(specs: dict[str, TensorSpec]) -> bytes:
    if _METADATA in specs:
        raise ProtocolError(f"a tensor is called {_METADATA!r}, which the format keeps for itself.")
    table, offset = {}, 0
    for name, spec in specs.items():
        end = offset + spec.size_bytes
        table[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"a tensor's name is not Unicode text: {error}.") from error
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _memory_of(array: Tensor, dtype: np.dtype[np.generic]) -> memoryview:
    plain = array.astype(dtype, order="C", copy=False)
    return plain.reshape(-1).view(np.uint8).data


def map_model(file: Path, is_writable: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file as its mapped memory, which is read when it is looked at.

    The file may be replaced or deleted meanwhile, but must not be written into.

    Args:
        file: The `.safetensors` file.
        is_writable: Whether the arrays may be changed; the file stays as it is.

    Raises:
        SnapshotCorrupt: it cannot be read, or is not such a file.
    """
    try:
        with file.open("rb") as opened:
            access = mmap.ACCESS_COPY if is_writable else mmap.ACCESS_READ
            mapped = mmap.mmap(opened.fileno(), 0, access=access)
    except ValueError as error:
        raise SnapshotCorrupt(f"{file} is not a .safetensors file: it is empty.") from error
    except OSError as error:
        raise SnapshotCorrupt(f"{file} cannot be read: {error}.") from error
    return model_in(mapped, str(file))


def model_in(content: _Bytes, name: str) -> dict[str, Tensor]:
    """Returns the tensors in a file's content as views of its memory; `name` is for the error.

    Raises:
        SnapshotCorrupt: it is not the content of a `.safetensors` file.
    """
    try:
        return _read(content)
    except (ValueError, ProtocolError, RecursionError) as error:
        raise SnapshotCorrupt(f"{name} is not a .safetensors file: {error}") from error


def sha256_of(file: Path) -> str:
    """Returns the SHA-256 of a file, hex.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(content: _Bytes) -> dict[str, Tensor]:
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or length > _LONGEST_HEADER_BYTES or begin > len(content):
        raise ValueError(f"no header of {length:,} bytes fits into its {len(content):,} bytes.")
    header = json.loads(content[_LENGTH_BYTES:begin])
    if not isinstance(header, dict):
        raise ValueError("its header is not an object.")
    header.pop(_METADATA, None)
    specs, offset, limits = {}, 0, Limits()
    for name, entry in sorted(header.items(), key=lambda item: _span(item[1])):
        specs[name] = (read_spec(name, entry, offset, limits), begin + offset)
        offset += specs[name][0].size_bytes
    if begin + offset != len(content):
        raise ValueError(
            f"its header tells of {begin + offset:,} bytes, and it has {len(content):,}."
        )
    arrays = {
        name: np.ndarray(spec.shape, DTYPE_OF[spec.dtype], content, start)
        for name, (spec, start) in specs.items()
    }
    return {name: arrays[name] for name in header}


def _span(entry: JsonValue) -> tuple[int, int]:
    """Returns where a tensor's memory begins and ends, as far as that is said."""
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(span, list) or [type(each) for each in span] != [int, int]:
        raise ValueError(f"a tensor's entry is {str(entry)[:80]}.")
    return cast(int, span[0]), cast(int, span[1])
