"""How good predictions are: the metrics of each objective, in numpy."""

import numpy as np
from numpy.typing import NDArray

from prefect_federated.tabular.question import Objective

Floats = NDArray[np.float64]
BEST_HIGH = frozenset({"accuracy", "auc", "r2", "ndcg", "silhouette"})
"""Metrics of which more is better; of all others, less."""
_LEAST = float(np.finfo(float).eps)  # as scikit-learn has it


def scores(
    objective: Objective,
    label: Floats,
    prediction: Floats,
    group: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Returns the metrics of some predictions; nothing where there are no rows.

    Args:
        objective: What the label is.
        label: `(rows,)`: the class's number, or the value.
        prediction: Of "binary", the probability of class 1, `(rows,)`; of "multiclass",
            probabilities `(rows, classes)`; otherwise the value, or the rank's score, `(rows,)`.
        group: `(rows,)`: each row's query, for "ranking".

    Returns:
        binary and multiclass: accuracy, log_loss; binary also auc, where both classes are there.
        regression: rmse, mae, and r2 where the label varies. poisson: deviance (mean), rmse.
        ranking: ndcg, the mean over queries.

    >>> found = scores("binary", np.array([0.0, 1.0]), np.array([0.25, 0.75]))
    >>> found["accuracy"], found["auc"]
    (1.0, 1.0)
    """
    if not len(label) or objective == "none":
        return {}
    if objective == "binary":
        both = np.column_stack([1 - prediction, prediction])
        found = {**_classes(label, both, prediction > 0.5), **_auc(label, prediction)}
    elif objective == "multiclass":
        found = _classes(label, prediction, prediction.argmax(axis=1))
    elif objective == "ranking":
        found = _ndcg(label, prediction, np.zeros(len(label), int) if group is None else group)
    else:
        error = prediction - label
        found = {"rmse": float(np.sqrt((error**2).mean()))}
        if objective == "poisson":
            found["deviance"] = _poisson_deviance(label, prediction)
        else:
            found["mae"] = float(np.abs(error).mean())
            spread = float(((label - label.mean()) ** 2).sum())
            if spread > 0:
                found["r2"] = 1 - float((error**2).sum()) / spread
    return {name: value for name, value in found.items() if np.isfinite(value)}


def is_better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is the better value of a metric."""
    return one > other if metric in BEST_HIGH else one < other


def _classes(
    label: Floats, probabilities: Floats, chosen: NDArray[np.int64] | NDArray[np.bool_]
) -> dict[str, float]:
    own = probabilities[np.arange(len(label)), label.astype(int)]
    return {
        "accuracy": float((chosen == label).mean()),
        "log_loss": float(-np.log(np.clip(own, _LEAST, None)).mean()),
    }


def _auc(label: Floats, score: Floats) -> dict[str, float]:
    """Returns the area under the ROC curve, by ranks; ties count half (Mann and Whitney 1947)."""
    positive = label == 1
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return {}
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return {"auc": float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))}


def _poisson_deviance(label: Floats, mean: Floats) -> float:
    mean = np.clip(mean, _LEAST, None)
    logs = np.where(label > 0, label * np.log(np.where(label > 0, label, 1) / mean), 0.0)
    return float(2 * (logs - label + mean).mean())


def _ndcg(relevance: Floats, score: Floats, group: NDArray[np.int64]) -> dict[str, float]:
    """Returns the mean over queries of the normalised discounted gain, 2^relevance - 1.

    Source: Burges et al. 2005, "Learning to Rank using Gradient Descent", section 6.
    """
    found = []
    for query in np.unique(group):
        rows = group == query
        gain = 2 ** relevance[rows] - 1
        discount = 1 / np.log2(np.arange(len(gain)) + 2)
        best = float((np.sort(gain)[::-1] * discount).sum())
        if best > 0:
            by_score = np.argsort(-score[rows], kind="stable")
            found.append(float((gain[by_score] * discount).sum()) / best)
    return {"ndcg": float(np.mean(found))} if found else {}
