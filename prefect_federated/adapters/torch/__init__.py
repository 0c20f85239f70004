"""PyTorch modules as executors: a module, a site's data and a plain training loop.

`TorchExecutor` answers the site tasks `initialize`, `train` (FedAvg, FedProx), `evaluate`,
`scaffold` and `ditto`. Who has a training loop already needs only `tensors_of` and `load_tensors`.
Installed with the extra `torch`; nothing else in the package imports torch.
"""

from prefect_federated.adapters.torch.examples import Examples, TrainTest
from prefect_federated.adapters.torch.executor import TorchExecutor, accuracy
from prefect_federated.adapters.torch.tensors import buffer_names, load_tensors, tensors_of

__all__ = [
    "Examples",
    "TorchExecutor",
    "TrainTest",
    "accuracy",
    "buffer_names",
    "load_tensors",
    "tensors_of",
]
