"""A site's own function as a source: it returns a frame, which is then read like a file."""

import importlib
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import pandas as pd
import pyarrow

from prefect_federated.datasets.cells import kind_of
from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.streams import StreamReader
from prefect_federated.errors import DatasetUnreadable

_KINDS: dict[str, Kind] = {
    "boolean": "boolean",
    "date": "datetime",
    "datetime": "datetime",
    "datetime64": "datetime",
    "decimal": "numeric",
    "empty": "empty",
    "floating": "numeric",
    "integer": "numeric",
    "mixed-integer-float": "numeric",
    "string": "categorical",
}
"""What pandas calls the objects in a column -> the column's kind."""

_log = logging.getLogger("prefect_federated.site")


@dataclass(frozen=True)
class FunctionSource:
    """A function without parameters that returns a pandas frame or a pyarrow table.

    Args:
        path: "module:function", importable at the site.
    """

    path: str

    @property
    def title(self) -> str:
        """How errors name it."""
        return f"function {self.path}"

    @contextmanager
    def open(self) -> Iterator[StreamReader]:
        """Calls the function.

        Raises:
            DatasetUnreadable: there is no such function, it raised, or it returned no frame.
        """
        frame = self._call()
        yield StreamReader(
            [str(name) for name in frame.columns],
            lambda names, rows: _read(frame, names, rows),
            lambda names: {name: _kind(name, frame[name]) for name in names},
        )

    def _call(self) -> pd.DataFrame:
        function = self._load()
        try:
            found = function()
        except Exception as error:  # a site's own code
            _log.exception("%s raised", self.title)  # at the site, where its values may be read
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise DatasetUnreadable(
                f"{self.title} raised {type(error).__name__} in {where.name}, line {where.lineno} "
                "of its file. The site's log has the whole of it."
            ) from None
        if isinstance(found, pyarrow.Table):
            found = found.to_pandas(types_mapper=pd.ArrowDtype)
        if not isinstance(found, pd.DataFrame):
            raise DatasetUnreadable(
                f"{self.title} returned a {type(found).__name__}. Return a pandas DataFrame or a "
                "pyarrow Table."
            )
        return found.set_axis([str(name) for name in found.columns], axis="columns")

    def _load(self) -> Callable[[], object]:
        module_name, _, name = self.path.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), name or module_name)
        except Exception as error:  # a site's own code
            is_absent = isinstance(error, ImportError | AttributeError)
            why = f"{type(error).__name__}: {error}" if is_absent else type(error).__name__
            raise DatasetUnreadable(
                f"{self.title} cannot be imported ({why}). Write `function: module:name`, of a "
                "module that is installed at the site or lies in a folder that the site was "
                "started with as --code."
            ) from None
        if not callable(function) or not _takes_nothing(function):
            raise DatasetUnreadable(
                f"{self.title} is not a function without parameters. Name one that returns a frame."
            )
        return cast(Callable[[], object], function)


def _takes_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _kind(name: str, column: pd.Series) -> Kind | Unusable:
    """Returns what a column of a frame holds: by its type, or by its objects where it has none."""
    if len(column) and column.isna().all():
        return "empty"
    if column.dtype != object:
        return kind_of(name, pyarrow.Array.from_pandas(column.iloc[:1]).type)
    found = pd.api.types.infer_dtype(column, skipna=True)
    if found in _KINDS:
        return _KINDS[found]
    return Unusable(
        f"column {name!r} holds Python objects of mixed types ({found}) where numbers, text, truth "
        "values or dates were expected. Convert it in the function."
    )


def _read(frame: pd.DataFrame, names: Sequence[str], rows: int) -> Iterator[pyarrow.RecordBatch]:
    for start in range(0, len(frame), rows):
        part = frame[list(names)].iloc[start : start + rows]
        yield pyarrow.RecordBatch.from_arrays([_array(part[name]) for name in names], list(names))


def _array(column: pd.Series) -> pyarrow.Array:
    try:
        array = pyarrow.Array.from_pandas(column)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # whole numbers and others
        texts = column.map(str, na_action="ignore")
        array = pyarrow.Array.from_pandas(texts, type=pyarrow.string())
    return array.combine_chunks() if isinstance(array, pyarrow.ChunkedArray) else array
