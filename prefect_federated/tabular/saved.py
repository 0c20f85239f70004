"""Fitted models on disk: a folder of files without pickle, loaded by one function."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from prefect_federated.errors import ConfigurationError, SnapshotCorrupt

CARD = "card.json"
LOADERS = {
    "xgboost": "prefect_federated.adapters.xgboost.saved",
    "sklearn": "prefect_federated.adapters.sklearn.saved",
}
"""Kind of model -> the module whose `load(folder)` reads its files; a file names no other."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model as files.

    Args:
        kind: One of `LOADERS`.
        files: Name -> content, such as "model.ubj".
    """

    kind: str
    files: Mapping[str, bytes]


def load_fitted(folder: Path | str) -> object:
    """Returns the fitted model in a result's folder: a scikit-learn object, or a stock booster.

    Args:
        folder: What a job's result names as `path`: it holds `card.json` and the model's files.

    Raises:
        ConfigurationError: there is no such folder, or the package that the model needs is not
            installed.
        SnapshotCorrupt: a file is damaged.
    """
    folder = Path(folder)
    try:
        said = json.loads((folder / CARD).read_bytes())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{folder} holds no {CARD}. Name the folder that the job's result gives as its path."
        ) from error
    except (OSError, ValueError) as error:
        raise SnapshotCorrupt(f"{folder / CARD} cannot be read: {error}.") from error
    kind = said.get("kind") if isinstance(said, dict) else None
    if kind not in LOADERS:
        raise SnapshotCorrupt(
            f"{folder / CARD} names the kind of model {kind!r}; known are {', '.join(LOADERS)}."
        )
    try:
        loader = import_module(LOADERS[kind])
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"to load this model takes {error.name!r}, which is not installed here. Install "
            f"prefect-federated[{kind}]."
        ) from error
    loaded: object = loader.load(folder)
    return loaded
