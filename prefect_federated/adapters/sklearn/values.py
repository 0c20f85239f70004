"""Values of an estimator's parameters and attributes as JSON, with the arrays beside it.

JSON's own values stand for themselves; any other value is an object whose "is" says what it is,
such as `{"is": "array", "name": "a3"}`. What is read back is data only: nothing in it is called,
and no name in it is imported.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue, Tensor

_NUMBERS = "biufc"
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip


class NotAValue(ValueError):
    """A value has no form in JSON and arrays, or what was read is none; the message says which."""


class Writer:
    """Turns values into JSON; gathers the arrays that they hold.

    Args:
        estimator: Turns an estimator into JSON; called for each object with `get_params`.
    """

    def __init__(self, estimator: Callable[[object, "Writer"], JsonValue]) -> None:
        self.arrays: dict[str, Tensor] = {}
        """Name -> array."""
        self._names: dict[int, str] = {}  # an array that stands in two places stays one array
        self._estimator = estimator

    def write(self, value: object) -> JsonValue:
        """Returns a value as JSON.

        Raises:
            NotAValue: it is, or holds, an object that is neither data nor an estimator.
        """
        if value is None or type(value) in (bool, int, str):
            return value  # type: ignore[return-value]
        if type(value) is float:
            return value if math.isfinite(value) else {"is": "float", "of": str(value)}
        if isinstance(value, list):
            return [self.write(each) for each in value]
        if isinstance(value, tuple):
            return {"is": "tuple", "of": [self.write(each) for each in value]}
        if isinstance(value, dict):
            pairs = [[self.write(key), self.write(each)] for key, each in value.items()]
            return {"is": "dict", "of": pairs}  # type: ignore[dict-item]
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return {"is": "slice", "of": [self.write(part) for part in parts]}
        return self._write_numpy(value)

    def _write_numpy(self, value: object) -> JsonValue:
        if isinstance(value, np.dtype) and value.name in _TYPES:
            return {"is": "dtype", "of": value.name}
        if isinstance(value, type) and value.__name__ in _TYPES and issubclass(value, np.generic):
            return {"is": "type", "of": value.__name__}
        if isinstance(value, np.generic) and value.dtype.kind in _NUMBERS:
            return {"is": "scalar", "name": self._keep(np.asarray(value))}
        if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
            order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
            return {"is": "array", "name": self._keep(value), "order": order}
        if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
            items = [self.write(each) for each in value.ravel().tolist()]
            kind = "object" if value.dtype.kind == "O" else "text"
            return {"is": "texts", "of": items, "shape": list(value.shape), "kind": kind}
        if isinstance(value, np.str_):
            return str(value)
        if hasattr(value, "get_params") and not isinstance(value, type):
            return self._estimator(value, self)
        raise NotAValue(
            f"a {type(value).__module__}.{type(value).__qualname__}, which is neither data nor an "
            "estimator"
        )

    def _keep(self, array: Tensor) -> str:
        name = self._names.setdefault(id(array), f"a{len(self.arrays)}")
        self.arrays[name] = array  # holds it, so that its id stays its own
        return name


class Reader:
    """Turns JSON of `Writer` into values again.

    Args:
        arrays: Name -> array.
        estimator: Makes an estimator of its JSON.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        estimator: Callable[[Mapping[str, JsonValue], "Reader"], object],
    ) -> None:
        self._arrays = arrays
        self._made: dict[str, Tensor] = {}
        self._estimator = estimator

    def read(self, value: JsonValue) -> object:
        """Returns the value that JSON stands for.

        Raises:
            NotAValue: it is none that `Writer` writes.
        """
        if isinstance(value, list):
            return [self.read(each) for each in value]
        if not isinstance(value, dict):
            return value
        kind, of = value.get("is"), value.get("of")
        if kind == "estimator":
            return self._estimator(value, self)
        if kind in ("array", "scalar"):
            return self._array(value)
        if kind == "float" and isinstance(of, str) and of in _NOT_FINITE:
            return _NOT_FINITE[of]
        if kind in ("dtype", "type") and of in _TYPES:
            dtype = np.dtype(str(of))
            return dtype if kind == "dtype" else dtype.type
        if isinstance(of, list):
            return self._collection(value, of)
        raise NotAValue(f"{str(value)[:80]} is no value")

    def _collection(self, value: Mapping[str, JsonValue], of: list[JsonValue]) -> object:
        kind = value["is"]
        if kind == "tuple":
            return tuple(self.read(each) for each in of)
        if kind == "slice" and len(of) == 3:
            return slice(*(self.read(each) for each in of))
        if kind == "dict":
            pairs = [pair for pair in of if isinstance(pair, list) and len(pair) == 2]
            if len(pairs) == len(of):
                return {self._key(key): self.read(each) for key, each in pairs}
        if kind == "texts":
            return self._texts(value, of)
        raise NotAValue(f"{str(value)[:80]} is no value")

    def _key(self, key: JsonValue) -> object:
        found = self.read(key)
        if not isinstance(found, str | int | float | bool | tuple | None):
            raise NotAValue(f"{str(key)[:80]} is no key of a dict")
        return found

    def _array(self, value: Mapping[str, JsonValue]) -> object:
        name = value.get("name")
        if not isinstance(name, str) or name not in self._arrays:
            raise NotAValue(f"there is no array {name!r}")
        array = self._arrays[name]
        if value["is"] == "scalar":
            if array.shape != ():
                raise NotAValue(f"array {name!r} has shape {array.shape}, and is to be one number")
            return array[()]
        if name not in self._made:  # a copy, since what arrives is read-only
            self._made[name] = np.array(array, order="F" if value.get("order") == "F" else "C")
        return self._made[name]

    def _texts(self, value: Mapping[str, JsonValue], of: list[JsonValue]) -> Tensor:
        shape = value.get("shape")
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
            raise NotAValue(f"{str(shape)[:80]} is no shape")
        if math.prod(shape) != len(of):  # type: ignore[arg-type]
            raise NotAValue(f"{len(of)} texts are not of shape {shape}")
        if value.get("kind") == "text":
            if not all(isinstance(each, str) for each in of):
                raise NotAValue("an array of texts holds something else")
            return np.array(of, dtype=np.str_).reshape(shape)  # type: ignore[arg-type]
        items = np.empty(len(of), dtype=object)
        for place, each in enumerate(of):
            items[place] = self.read(each)
        return items.reshape(shape)  # type: ignore[arg-type]


def cannot_save(class_path: str, name: str, error: NotAValue) -> ConfigurationError:
    """Returns the error for an estimator whose parameter or attribute has no form here."""
    return ConfigurationError(
        f"{class_path} cannot be saved without pickle: its {name!r} is {error}. Choose an "
        "estimator whose state is arrays, numbers and texts, or set that parameter to one of these."
    )
