"""XGBoost's matrices of a site's rows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.messages import JsonValue
from prefect_federated.tabular.rows import Part

if TYPE_CHECKING:
    import xgboost


def matrix_of(
    part: Part, parameters: Mapping[str, JsonValue], *, by_columns: bool = False
) -> "xgboost.DMatrix":
    """Returns rows as XGBoost takes them: missing values, categories, and the queries in order.

    Args:
        part: The rows.
        parameters: XGBoost's parameters, of which "nthread" counts here.
        by_columns: Whether other sites have further columns of the same rows.
    """
    import xgboost
    from xgboost.core import DataSplitMode

    label = part.label if len(part.label) == part.rows else None
    features, group = part.features, part.group
    if group is not None:
        order = np.argsort(group, kind="stable")
        features, group = features.iloc[order], group[order]
        label = None if label is None else label[order]
    threads = parameters.get("nthread")
    return xgboost.DMatrix(
        features,
        label,
        qid=group,
        enable_categorical=True,
        nthread=threads if isinstance(threads, int) else None,
        data_split_mode=DataSplitMode.COL if by_columns else DataSplitMode.ROW,
    )
