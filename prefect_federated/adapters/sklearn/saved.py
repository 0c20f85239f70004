"""Fitted scikit-learn objects without pickle: one JSON document and one `.safetensors` file.

    model.json            classes by name, parameters, fitted attributes
    arrays.safetensors    their arrays

Reading them runs nothing that they name: a class is imported only if it is in `classes.CLASSES`, or
the reader allows it, and then gets data as parameters and attributes. The same two, as tensors, are
how a model travels between a server and its sites.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from prefect_federated.adapters.sklearn.classes import (
    CLASSES,
    DROPPED,
    check_parameters,
    find,
    path_of,
    restore,
)
from prefect_federated.adapters.sklearn.values import NotAValue, Reader, Writer, cannot_save
from prefect_federated.errors import ConfigurationError, SnapshotCorrupt
from prefect_federated.messages import JsonValue, Tensor, Tensors
from prefect_federated.model_file import map_model, model_bytes
from prefect_federated.tabular.saved import Fitted

DOCUMENT = "model.json"
ARRAYS = "arrays.safetensors"
_FORMAT = "prefect-federated scikit-learn 1"
_NAME = re.compile(r"(?!__)[A-Za-z_]\w*")


def fitted_of(estimator: object, allow: Collection[str] = ()) -> Fitted:
    """Returns a fitted estimator as the files that `load` reads.

    Args:
        estimator: A scikit-learn object, such as a `Pipeline`.
        allow: Import paths of further classes whose state is arrays, numbers, texts and estimators.

    Raises:
        ConfigurationError: its class is not allowed, or a part of its state is not data.
    """
    document, arrays = _written(estimator, allow)
    text = json.dumps(document, ensure_ascii=False, indent=1).encode()
    return Fitted(kind="sklearn", files={DOCUMENT: text, ARRAYS: model_bytes(arrays)})


def load(folder: Path | str, allow: Collection[str] = ()) -> Any:
    """Returns the fitted scikit-learn object in a folder; it predicts as what was saved.

    Warns where another version of scikit-learn has saved it.

    Args:
        folder: Holds `model.json` and `arrays.safetensors`.
        allow: Import paths of classes that it may name beside scikit-learn's: only those that you
            would run.

    Raises:
        SnapshotCorrupt: the files are not there, are damaged, or name a class that is not allowed.
    """
    place = Path(folder)
    try:
        raw = (place / DOCUMENT).read_bytes()
    except OSError as error:
        raise SnapshotCorrupt(f"{place / DOCUMENT} cannot be read: {error}.") from error
    return _read(raw, map_model(place / ARRAYS), str(place / DOCUMENT), allow)


def to_tensors(estimator: object, allow: Collection[str] = ()) -> dict[str, Tensor]:
    """Returns an estimator as tensors that travel: its arrays, and its document as bytes.

    Raises:
        ConfigurationError: as for `fitted_of`.
    """
    document, arrays = _written(estimator, allow)
    raw = json.dumps(document, ensure_ascii=False).encode()
    return {DOCUMENT: np.frombuffer(raw, np.uint8), **arrays}


def fitted_in(tensors: Tensors) -> Fitted:
    """Returns what `to_tensors` has made as the files that `load` reads; imports nothing."""
    arrays = {name: array for name, array in tensors.items() if name != DOCUMENT}
    text = np.asarray(tensors[DOCUMENT]).tobytes()
    return Fitted(kind="sklearn", files={DOCUMENT: text, ARRAYS: model_bytes(arrays)})


def from_tensors(tensors: Tensors, sender: str, allow: Collection[str] = ()) -> Any:
    """Returns the estimator that `to_tensors` has made tensors of.

    Args:
        tensors: What arrived.
        sender: Who has sent it, for the error.
        allow: Import paths of classes that it may name beside scikit-learn's.

    Raises:
        SnapshotCorrupt: they are not an estimator's, or name a class that is not allowed.
    """
    raw = np.asarray(tensors.get(DOCUMENT, np.zeros(0, np.uint8)))
    arrays = {name: array for name, array in tensors.items() if name != DOCUMENT}
    return _read(raw.tobytes(), arrays, f"the model from {sender}", allow)


def _written(
    estimator: object, allow: Collection[str]
) -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    def write(part: object, writer: Writer) -> JsonValue:
        path = path_of(part)
        if path not in CLASSES and path not in allow:
            raise ConfigurationError(
                f"{path} is not among the classes that are saved without pickle. If its state is "
                f"arrays, numbers and texts, allow it by name where it is saved and loaded: "
                f"allow=[{path!r}]."
            )
        parameters: dict[str, object] = part.get_params(deep=False)  # type: ignore[attr-defined]
        dropped = DROPPED.get(type(part).__name__, frozenset())
        attributes = {
            name: value
            for name, value in vars(part).items()
            if name not in parameters and name not in dropped
        }
        said: dict[str, JsonValue] = {"is": "estimator", "class": path}
        for title, values in (("parameters", parameters), ("attributes", attributes)):
            of: dict[str, JsonValue] = {}
            for name, value in values.items():
                try:
                    of[name] = writer.write(value)
                except NotAValue as error:
                    raise cannot_save(path, name, error) from error
            said[title] = of
        return said

    writer = Writer(write)
    document: dict[str, JsonValue] = {
        "format": _FORMAT,
        "scikit-learn": sklearn.__version__,
        "model": write(estimator, writer),
    }
    return document, writer.arrays


def _read(raw: bytes, arrays: Tensors, name: str, allow: Collection[str]) -> Any:
    try:
        document = json.loads(raw)
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise NotAValue(f"it is not of the format {_FORMAT!r}")
        version = document.get("scikit-learn")
        model = Reader(arrays, _Maker(allow)).read(document.get("model"))
        if not hasattr(model, "get_params"):
            raise NotAValue("there is no model in it")
    except (ValueError, RecursionError) as error:  # NotAValue and JSON's own are ValueErrors
        raise SnapshotCorrupt(
            f"{name} is not a saved scikit-learn model: {str(error) or type(error).__name__}. Take "
            "the file as the job has written it."
        ) from error
    if str(version).split(".")[:2] != sklearn.__version__.split(".")[:2]:
        warnings.warn(
            f"{name} was saved by scikit-learn {version}, and here is {sklearn.__version__}: it "
            "may predict otherwise. Install the version that saved it.",
            stacklevel=3,
        )
    return model


class _Maker:
    """Makes estimators of their JSON, of allowed classes only."""

    def __init__(self, allow: Collection[str]) -> None:
        self._allow = allow

    def __call__(self, said: Mapping[str, JsonValue], reader: Reader) -> object:
        kind = find(str(said.get("class")), self._allow)
        parameters = self._named(said.get("parameters"), reader)
        attributes = self._named(said.get("attributes"), reader)
        check_parameters(parameters)
        try:
            made = kind(**parameters)
        except TypeError as error:
            raise NotAValue(
                f"{kind.__name__} of this version takes no such parameters: {error}"
            ) from error
        for name in attributes:
            if callable(getattr(kind, name, None)):
                raise NotAValue(f"{kind.__name__}.{name} is a function, and no attribute")
        vars(made).update(attributes)
        restore(made)
        return made

    def _named(self, values: JsonValue, reader: Reader) -> dict[str, object]:
        if not isinstance(values, dict) or not all(_NAME.fullmatch(name) for name in values):
            raise NotAValue(f"{str(values)[:80]} are no parameters or attributes")
        return {name: reader.read(value) for name, value in values.items()}
