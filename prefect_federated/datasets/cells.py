"""Arrow columns as a table's readers get them: float64 arrays, and pandas categories."""

from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_federated.datasets.kinds import Kind, Unusable
from prefect_federated.datasets.texts import PATTERNS, mixed_types, without_missing
from prefect_federated.errors import MixedTypes

Cells: TypeAlias = NDArray[np.float64] | pd.Categorical

_TRUTHS = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}
_ZONE = r"[ T]\d{2}:.*(Z|[-+]\d{2}(:?\d{2})?)$"
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def kind_of(name: str, type_: pyarrow.DataType) -> Kind | Unusable:
    """Returns what a column of this Arrow type holds."""
    types = pyarrow.types
    if types.is_dictionary(type_) or is_text(type_):
        return "categorical"
    if types.is_boolean(type_):
        return "boolean"
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        return "numeric"
    if types.is_timestamp(type_) or types.is_date(type_):
        return "datetime"
    if types.is_null(type_):
        return "empty"
    return unusable(name, str(type_))


def unusable(name: str, type_: str) -> Unusable:
    """Returns what a person is told of a column whose type has no kind."""
    return Unusable(
        f"column {name!r} holds values of type {type_}, of which there are no statistics here. "
        "Leave it out, or convert it to numbers, text, truth values or dates."
    )


def is_text(type_: pyarrow.DataType) -> bool:
    """Whether values of this Arrow type are text."""
    types = pyarrow.types
    return bool(types.is_string(type_) or types.is_large_string(type_))


def cells(name: str, array: pyarrow.Array, kind: Kind, row: int) -> Cells:
    """Returns a column's values: float64 with NaN for missing, or categories.

    Args:
        name: The column's name.
        array: Its values, of any Arrow type that has a kind.
        kind: What the column holds.
        row: The row of the first value, from 1, as errors name it.

    Raises:
        MixedTypes: a value is not of that kind.
    """
    if kind == "categorical":
        try:
            return _categories(array)
        except pyarrow.ArrowException:  # lists, or bytes that are no text
            raise MixedTypes(unusable(name, str(array.type)).reason, name) from None
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    own = kind_of(name, array.type)
    if isinstance(own, Unusable):
        raise MixedTypes(own.reason, name)
    if is_text(array.type):
        array = without_missing(array)
    if array.null_count == len(array):
        return np.full(len(array), np.nan)
    if kind == "boolean":
        return _truths(name, array, row)
    if kind == "datetime":
        return _seconds(name, array, row)
    if kind == "numeric":
        return _numbers(name, array, row)
    raise _mixed(name, pc.is_valid(array), kind, "values", row)


def _numbers(name: str, array: pyarrow.Array, row: int) -> NDArray[np.float64]:
    if pyarrow.types.is_boolean(array.type):
        return _floats(pc.cast(array, pyarrow.uint8()))
    if pyarrow.types.is_temporal(array.type):
        return _seconds(name, array, row)
    try:
        return _floats(array)
    except pyarrow.ArrowInvalid:
        raise _mixed(name, _misfits(array, "numeric"), "numeric", "text", row) from None


def _truths(name: str, array: pyarrow.Array, row: int) -> NDArray[np.float64]:
    if is_text(array.type):
        words = pyarrow.array(list(_TRUTHS), array.type)
        place = pc.index_in(pc.utf8_lower(array), words)
        unknown = pc.and_(pc.is_valid(array), pc.is_null(place))
        if pc.any(unknown).as_py():
            raise _mixed(name, unknown, "boolean", "text", row)
        return _floats(pc.take(pyarrow.array(list(_TRUTHS.values())), place))
    values = _numbers(name, array, row)
    neither = ~(np.isnan(values) | (values == 0) | (values == 1))
    if neither.any():
        raise _mixed(name, pyarrow.array(neither), "boolean", "a number", row)
    return values


def _seconds(name: str, array: pyarrow.Array, row: int) -> NDArray[np.float64]:
    if is_text(array.type):
        try:
            return _seconds_of_text(array)
        except pyarrow.ArrowInvalid:
            raise _mixed(name, _misfits(array, "datetime"), "datetime", "text", row) from None
    if pyarrow.types.is_date(array.type):
        array = pc.cast(array, pyarrow.timestamp("ms"))
    if not pyarrow.types.is_timestamp(array.type):
        return _numbers(name, array, row)
    return _floats(pc.cast(array, pyarrow.int64())) / _PER_SECOND[array.type.unit]


def _seconds_of_text(array: pyarrow.Array) -> NDArray[np.float64]:
    has_zone = pc.match_substring_regex(array, _ZONE)
    if not pc.any(has_zone).as_py():
        return _seconds("", pc.cast(array, pyarrow.timestamp("us")), 1)
    nothing = pyarrow.scalar(None, array.type)
    with_zone = pc.cast(pc.if_else(has_zone, array, nothing), pyarrow.timestamp("us", "UTC"))
    without = pc.cast(pc.if_else(has_zone, nothing, array), pyarrow.timestamp("us"))
    found, rest = _seconds("", with_zone, 1), _seconds("", without, 1)
    return np.where(np.isnan(found), rest, found)


def _floats(array: pyarrow.Array) -> NDArray[np.float64]:
    # unsafe: whole numbers beyond 2^53 lose their last digits, as any float64 does
    floats = pc.cast(array, pyarrow.float64(), safe=is_text(array.type))
    values: NDArray[np.float64] = floats.to_numpy(zero_copy_only=False)
    return values


def _categories(array: pyarrow.Array) -> pd.Categorical:
    if not pyarrow.types.is_dictionary(array.type):
        array = as_text(array).dictionary_encode()
    names = without_blanks(as_text(array.dictionary))
    codes = pc.fill_null(pc.cast(array.indices, pyarrow.int32()), -1).to_numpy()
    distinct = names.drop_null().dictionary_encode()
    if len(distinct.dictionary) < len(names):  # two values have one name, or a value has none
        places = np.full(len(names) + 1, -1, dtype=np.int32)  # the last is for code -1
        places[:-1] = pc.fill_null(pc.index_in(names, distinct.dictionary), -1).to_numpy()
        codes, names = places[codes], distinct.dictionary
    categories = pd.Index(names.to_numpy(zero_copy_only=False), dtype="str")
    return pd.Categorical.from_codes(codes, categories=categories)


def as_text(array: pyarrow.Array) -> pyarrow.Array:
    """Returns values as text; whole numbers without a point, however they are stored."""
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pyarrow.types.is_floating(array.type) or pyarrow.types.is_decimal(array.type):
        floats = pc.cast(array, pyarrow.float64())
        floats = pc.if_else(pc.is_nan(floats), pyarrow.scalar(None, floats.type), floats)
        whole = pc.and_(pc.equal(floats, pc.round(floats)), pc.less(pc.abs(floats), 2.0**53))
        has_point = pc.all(whole).as_py() is False
        array = floats if has_point else pc.cast(floats, pyarrow.int64())
    return array if is_text(array.type) else pc.cast(array, pyarrow.string())


def without_blanks(array: pyarrow.Array) -> pyarrow.Array:
    """Returns the texts with null for those that are empty or only spaces."""
    blank = pc.equal(pc.utf8_trim_whitespace(array), pyarrow.scalar("", array.type))
    return pc.if_else(blank, pyarrow.scalar(None, array.type), array)


def _misfits(array: pyarrow.Array, kind: Kind) -> pyarrow.Array:
    """Returns which of the texts are not of a kind."""
    misfits = pc.invert(pc.match_substring_regex(array, PATTERNS[kind]))
    if pc.any(misfits).as_py():
        return misfits
    return pc.is_valid(array)  # such as the 30th of February: one of them is wrong


def _mixed(name: str, misfits: pyarrow.Array, kind: Kind, what: str, row: int) -> MixedTypes:
    at = f"row {row + pc.index(misfits, True).as_py():,}"
    return MixedTypes(mixed_types(name, kind, what, at), name)
