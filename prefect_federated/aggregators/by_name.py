"""Aggregators by name, for what chooses one by a parameter."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

from prefect_federated.aggregators.coordinates import check_trim, median, trimmed_mean
from prefect_federated.aggregators.krum import check_byzantine, krum, multi_krum
from prefect_federated.aggregators.mean import weighted_mean
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Reply, Tensor

Aggregator: TypeAlias = Callable[[Iterable[Reply]], dict[str, Tensor]]

AGGREGATORS = ("weighted_mean", "median", "trimmed_mean", "krum", "multi_krum")
"""The names that `aggregator` knows."""


def aggregator(name: str, *, byzantine: int = 1, trim: float = 0.2) -> Aggregator:
    """Returns the aggregator of a name, with its options set.

    Args:
        name: One of `AGGREGATORS`.
        byzantine: For `krum` and `multi_krum`: how many sites may send poison.
        trim: For `trimmed_mean`: share of the updates to leave out at each end.

    Raises:
        ConfigurationError: an unknown name, or an option out of its range.
    """
    check_byzantine(byzantine)
    check_trim(trim)
    known: dict[str, Aggregator] = {
        "weighted_mean": weighted_mean,
        "median": median,
        "trimmed_mean": partial(trimmed_mean, trim=trim),
        "krum": partial(krum, byzantine=byzantine),
        "multi_krum": partial(multi_krum, byzantine=byzantine),
    }
    if name not in known:
        raise ConfigurationError(
            f"there is no aggregator {name!r}; choose one of {', '.join(AGGREGATORS)}."
        )
    return known[name]
