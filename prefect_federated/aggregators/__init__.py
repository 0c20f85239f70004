"""Updates in, global tensors out: arithmetic without I/O.

`weighted_mean` is the mean of FedAvg. `median`, `trimmed_mean`, `krum` and `multi_krum` bear sites
that send poison; they hold all updates of a round in memory. Each takes the replies of a round, and
gives the same bits in whatever order they come.
"""

from prefect_federated.aggregators.by_name import AGGREGATORS, aggregator
from prefect_federated.aggregators.coordinates import median, trimmed_mean
from prefect_federated.aggregators.krum import krum, multi_krum
from prefect_federated.aggregators.mean import weighted_mean

__all__ = [
    "AGGREGATORS",
    "aggregator",
    "krum",
    "median",
    "multi_krum",
    "trimmed_mean",
    "weighted_mean",
]
