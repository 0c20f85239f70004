"""What XGBoost's distributed training can and cannot do, checked before a job begins."""

from collections.abc import Mapping
from typing import Literal

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue

Mode = Literal["histogram", "vertical"]

_TREE_METHODS = {"histogram": ("hist", "approx", "auto"), "vertical": ("hist", "approx", "auto")}
_WHY_NOT: Mapping[str, str] = {
    "updater": "the tree method chooses it",
    "process_type": "trees are grown, not changed",
    "multi_strategy": "there is one tree for each class",
    "data_split_mode": "the flow itself says how the data are divided",
}
_WHY_NOT_VERTICAL: Mapping[str, str] = {
    "monotone_constraints": "they go by the number of a column, which sites do not share",
    "interaction_constraints": "they go by the number of a column, which sites do not share",
}


def check_parameters(parameters: Mapping[str, JsonValue], mode: Mode) -> None:
    """Raises `ConfigurationError` if the mode cannot do a parameter; says which can.

    Args:
        parameters: XGBoost's parameters, as a job gives them.
        mode: "histogram": sites have rows of the same columns; "vertical": columns of the same
            rows.

    >>> check_parameters({"tree_method": "hist", "eta": 0.3}, "histogram")
    """
    booster, method = parameters.get("booster", "gbtree"), parameters.get("tree_method", "hist")
    if booster != "gbtree":
        raise _refusal(
            "booster", booster, mode, "it grows trees; leave booster out, or set it to 'gbtree'"
        )
    if method not in _TREE_METHODS[mode]:
        raise _refusal(
            "tree_method", method, mode,
            "XGBoost trains over several machines by 'hist' or 'approx'; set one of them, or train "
            "with xgboost-bagging, whose sites grow their trees alone",
        )  # fmt: skip
    if str(parameters.get("device", "cpu")) != "cpu":
        raise _refusal(
            "device", parameters["device"], mode,
            "its collective calls carry what is in the processor's memory; leave device out",
        )  # fmt: skip
    why_not = {**_WHY_NOT, **(_WHY_NOT_VERTICAL if mode == "vertical" else {})}
    for name in parameters.keys() & why_not.keys():
        raise _refusal(name, parameters[name], mode, f"{why_not[name]}; leave it out")


def _refusal(name: str, value: JsonValue, mode: Mode, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"parameter {name}={value!r} cannot be used by xgboost-{mode}: {why}."
    )
