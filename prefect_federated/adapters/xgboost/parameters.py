"""XGBoost's parameters as jobs give them: which there are, and which a mode cannot do, and why.

XGBoost itself only warns of a name that it does not know; here it is an error with near names.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from prefect_federated.datasets.table import close
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue

Mode: TypeAlias = Literal["bagging", "cyclic", "histogram", "vertical"]
Objective: TypeAlias = Literal["binary", "multiclass", "regression", "poisson", "ranking"]

OBJECTIVES: Mapping[str, Sequence[str]] = {
    "binary": ("binary:logistic",),
    "multiclass": ("multi:softprob",),
    "regression": ("reg:squarederror", "reg:pseudohubererror", "reg:absoluteerror"),
    "poisson": ("count:poisson",),
    "ranking": ("rank:ndcg", "rank:pairwise", "rank:map"),
}
"""What the label is -> XGBoost's objectives for it; the first is the default."""
STOPS_BY: Mapping[str, str] = {
    "binary": "log_loss",
    "multiclass": "log_loss",
    "regression": "rmse",
    "poisson": "deviance",
    "ranking": "ndcg",
}
"""What the label is -> the metric of early stopping."""

_ALIASES = {"learning_rate": "eta", "reg_lambda": "lambda", "reg_alpha": "alpha",
            "min_split_loss": "gamma", "n_jobs": "nthread", "random_state": "seed"}  # fmt: skip
_TREES = "this federation trains boosted trees (gbtree)"
_REFUSED = {
    "process_type": "`update` changes trees that other sites have grown; trees are only added here",
    "updater": "the sites must grow trees alike; choose `tree_method`",
    "refresh_leaf": "it belongs to `process_type: update`, which changes other sites' trees",
    "multi_strategy": "trees with several outputs cannot be merged; there is a tree for each class",
    "device": "which device a site has is the site's to say; trees are grown on its processor",
    "nthread": "say `threads` in the job's `config`; it is 1 by default, because sites of a "
    "simulation share a processor",
    "verbosity": "XGBoost's messages stay at the site",
    "validate_parameters": "parameters are always checked",
    "seed": "say the job's `seed`",
    "seed_per_iteration": "each round and site has a seed of its own by the job's `seed`",
    "base_score": "all trees must start from the same score; it is the mean label of all sites",
    "num_class": "the sites say which classes there are",
    "eval_metric": "sites measure all metrics of the objective",
    "disable_default_eval_metric": "sites measure all metrics of the objective",
    "n_estimators": "say the job's `rounds`",
    "num_boost_round": "say the job's `rounds`",
    "early_stopping_rounds": "it is a parameter of the job itself",
    "lambdarank_unbiased": "the bias that it learns of a site's positions stays at that site",
    "lambdarank_bias_norm": "it belongs to `lambdarank_unbiased`, which is not possible here",
    "max_cached_hist_node": "it is for XGBoost's own tests",
    "debug_synchronize": "it is for XGBoost's own tests",
    **{name: f"it belongs to another booster, and {_TREES}" for name in (
        "rate_drop", "one_drop", "skip_drop", "sample_type", "normalize_type", "feature_selector",
        "top_k",
    )},
}  # fmt: skip
_TOGETHER = {
    "num_parallel_tree": "a round has one tree for each class",
    "base_score": "say the job's `base_score`",
    "eval_metric": "say the job's `eval_metric`",
    "disable_default_eval_metric": "say the job's `eval_metric`",
    "seed_per_iteration": "each round has a seed of its own by the job's `seed`",
}
_CONSTRAINED = "constraints go by the number of a column, and each site has columns of its own"
_BY_MODE: Mapping[str, Mapping[str, str]] = {
    "bagging": {
        "num_parallel_tree": "a round is a forest already; say `trees_per_round`",
    },
    "histogram": _TOGETHER,
    "vertical": {
        **_TOGETHER,
        "monotone_constraints": _CONSTRAINED,
        "interaction_constraints": _CONSTRAINED,
    },
}
_TRAINING = frozenset({
    "objective", "max_depth", "eta", "learning_rate", "gamma", "min_split_loss",
    "min_child_weight", "max_delta_step", "subsample", "sampling_method", "colsample_bytree",
    "colsample_bylevel", "colsample_bynode", "lambda", "reg_lambda", "alpha", "reg_alpha",
    "tree_method", "scale_pos_weight", "grow_policy", "max_leaves", "max_bin",
    "num_parallel_tree", "monotone_constraints", "interaction_constraints", "max_cat_to_onehot",
    "max_cat_threshold", "huber_slope", "lambdarank_pair_method",
    "lambdarank_num_pair_per_sample", "lambdarank_normalization",
    "lambdarank_score_normalization", "ndcg_exp_gain", "sketch_ratio", "booster",
})  # fmt: skip
"""XGBoost's parameters of training that some mode takes."""
_METHODS: Mapping[str, Sequence[str]] = {
    "bagging": ("auto", "hist", "exact", "approx"),
    "cyclic": ("auto", "hist", "exact", "approx"),
    "histogram": ("auto", "hist", "approx"),
    "vertical": ("auto", "hist", "approx"),
}


def resolve(
    mode: Mode,
    objective: str,
    given: Mapping[str, JsonValue],
    *,
    classes: int = 0,
    eta: float = 0.3,
    max_depth: int = 6,
) -> dict[str, JsonValue]:
    """Returns the parameters with which all sites train, but for threads and seeds.

    Args:
        mode: What is done with the trees.
        objective: What the label is.
        given: Further parameters of XGBoost's, by name or alias.
        classes: Of a multi-class label.
        eta: The learning rate.
        max_depth: Levels of a tree.

    Raises:
        ConfigurationError: a name or a value that XGBoost does not know, or what the mode cannot
            do; the message says why.
    """
    chosen: dict[str, JsonValue] = {
        "objective": OBJECTIVES[objective][0], "eta": eta, "max_depth": max_depth,
        "tree_method": "hist",
    }  # fmt: skip
    if objective == "multiclass":
        chosen["num_class"] = classes
    by: dict[str, str] = {}
    for name, value in given.items():
        plain = _ALIASES.get(name, name)
        if plain in by:
            raise ConfigurationError(f"xgboost: {by[plain]!r} and {name!r} are the same parameter.")
        by[plain] = name
        if plain in ("eta", "max_depth"):
            raise ConfigurationError(f"xgboost: say {plain!r} as the job's own parameter.")
        _check(mode, objective, name, plain, value)
        if name != "booster":
            chosen[plain] = value
    _try_out(chosen, objective)
    return chosen


def first_score(objective: str, count: float, total: float) -> float:
    """Returns the prediction that all sites' trees start from: the mean label, where it has one.

    Args:
        objective: What the label is.
        count: How many labels all sites have.
        total: Their sum.

    Returns:
        XGBoost's `base_score`: a probability, a value or a rate; 0.5 for multi-class labels and
        ranks, where it makes no difference, and where no site has told.
    """
    if count <= 0 or objective in ("multiclass", "ranking"):
        return 0.5
    mean = total / count
    if objective == "binary":
        return min(max(mean, 1e-3), 1 - 1e-3)
    return max(mean, 1e-6) if objective == "poisson" else mean


def _check(mode: Mode, objective: str, name: str, plain: str, value: JsonValue) -> None:
    if plain not in _TRAINING and plain not in _REFUSED:
        known = sorted(_TRAINING)
        raise ConfigurationError(
            f"xgboost: there is no parameter {name!r}. {close(name, known)}"
            "https://xgboost.readthedocs.io/en/stable/parameter.html lists them."
        )
    if plain == "booster":
        if value != "gbtree":
            raise ConfigurationError(
                f"xgboost: booster {value!r} is not possible in mode {mode}: {_booster(value)}. "
                "Leave `booster` out."
            )
        return
    why = _BY_MODE.get(mode, {}).get(plain) or _REFUSED.get(plain)
    if why is not None:
        raise ConfigurationError(f"xgboost: leave {name!r} out in mode {mode}: {why}.")
    allowed: Sequence[str] | None = None
    if plain == "objective":
        allowed = OBJECTIVES[objective]
    elif plain == "tree_method":
        allowed = _METHODS[mode]
    if allowed is not None and value not in allowed:
        raise ConfigurationError(
            f"xgboost: {plain} {value!r} is not possible in mode {mode} with the job's objective "
            f"{objective!r}; it can be {', '.join(allowed)}."
        )


def _booster(value: JsonValue) -> str:
    if value == "dart":
        return "it drops and rescales trees that other sites have grown"
    if value == "gblinear":
        return f"it has no trees, and {_TREES}; the job `linear` trains linear models"
    return _TREES


def _try_out(chosen: Mapping[str, JsonValue], objective: str) -> None:
    """Has XGBoost read the parameters, which finds values that it cannot take."""
    import numpy as np

    try:
        import xgboost
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "XGBoost is not installed at the server. Install prefect-federated[xgboost] there."
        ) from error
    classes = chosen.get("num_class")
    number = classes if isinstance(classes, int) else 2
    rows = max(number, 2)
    label = np.arange(rows) % number
    group = {"qid": np.zeros(rows, int)} if objective == "ranking" else {}
    least = {
        name: value for name, value in chosen.items()
        if name not in ("monotone_constraints", "interaction_constraints")  # they name columns
    }  # fmt: skip
    try:
        matrix = xgboost.DMatrix(np.zeros((rows, 1)), label, nthread=1, **group)
        xgboost.Booster({**least, "nthread": 1, "base_score": 0.5}, [matrix]).update(matrix, 0)
    except (xgboost.core.XGBoostError, TypeError, ValueError) as error:
        raise ConfigurationError(f"xgboost: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    """Returns XGBoost's reason without the lines that say where in its code it stands."""
    first = message.split("Stack trace")[0].strip()
    lines = [line.strip() for line in first.splitlines() if line.strip()]
    return " ".join(line.partition("Check failed: ")[2] or line for line in lines)[:400]
