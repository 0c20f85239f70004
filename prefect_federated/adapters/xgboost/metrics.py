"""XGBoost's own metrics as a training tells them: which of two values is better.

Nothing here needs XGBoost, so that the controller judges rounds without it.
"""

import math
from collections.abc import Mapping

_MAXIMIZED = ("auc", "aucpr", "pre", "map", "ndcg")


def score_of(metrics: Mapping[str, float]) -> float:
    """Returns what a round is judged by: XGBoost's last metric, where more is better.

    >>> score_of({"test-auc": 0.9, "test-logloss": 0.25}), score_of({})
    (-0.25, -inf)
    """
    if not metrics:
        return -math.inf
    name, value = list(metrics.items())[-1]
    return value if is_maximized(name) else -value


def is_maximized(metric: str) -> bool:
    """Whether more of a metric of XGBoost's is better.

    A minus at its end is the metric's own: "ndcg@5-" counts queries without a good answer as 0.

    >>> is_maximized("test-ndcg@5"), is_maximized("test-ndcg@5-"), is_maximized("test-mape")
    (True, True, False)
    """
    return metric.removesuffix("-").rpartition("-")[2].partition("@")[0] in _MAXIMIZED
