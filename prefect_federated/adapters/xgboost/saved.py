"""Boosters on disk: `model.ubj`, which any XGBoost of the same or a later version loads."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.adapters.xgboost.matrix import booster
from prefect_federated.errors import SnapshotCorrupt, UpdateRejected
from prefect_federated.messages import Tensor
from prefect_federated.tabular.saved import Fitted

if TYPE_CHECKING:
    import xgboost

MODEL = "model.ubj"


def save(raw: Tensor, rounds: int | None = None) -> Fitted:
    """Returns a booster as files.

    Args:
        raw: Its UBJSON, uint8.
        rounds: The rounds to keep, from the first; all if None.
    """
    made = booster(raw)
    if rounds is not None and rounds < made.num_boosted_rounds():
        made = made[:rounds]
    return Fitted("xgboost", {MODEL: bytes(made.save_raw("ubj"))})


def load(folder: Path) -> "xgboost.Booster":
    """Returns the booster in a result's folder.

    Raises:
        SnapshotCorrupt: there is none that XGBoost can read.
    """
    try:
        raw = (folder / MODEL).read_bytes()
        return booster(np.frombuffer(raw, np.uint8))
    except (OSError, UpdateRejected) as error:
        raise SnapshotCorrupt(f"{folder / MODEL} cannot be read: {error}") from error
