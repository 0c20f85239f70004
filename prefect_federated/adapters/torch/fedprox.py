"""FedAvg and FedProx at a site: local training from the received model, near to it or not.

Source: McMahan et al. 2017, Algorithm 1, ClientUpdate; Li et al. 2020, "Federated Optimization in
Heterogeneous Networks", equation 2: the site minimizes h(w; w_t) = F(w) + mu / 2 ||w - w_t||^2,
whose gradient is that of F plus mu (w - w_t). The paper leaves the local solver open; ours is
`epochs` passes of the executor's optimizer.
"""

from collections.abc import Iterable

import torch
from torch import nn

from prefect_federated.adapters.torch.settings import at_least_0
from prefect_federated.adapters.torch.tensors import buffer_names, load_tensors, tensors_of
from prefect_federated.adapters.torch.training import (
    Correction,
    LocalModel,
    gradients_of,
    trained_parameters,
)
from prefect_federated.messages import Tensors, Update


def train(local: LocalModel, received: Tensors) -> Update:
    """Returns the tensors trained from `received`, with the metrics of both models.

    Raises:
        ConfigurationError: the model does not fit, `mu` is negative, or as `LocalModel.fit`.
        UpdateRejected: the loss is not finite any more.
    """
    mu = at_least_0(local.site, "mu", 0)
    load_tensors(local.module, received)
    measured = local.measure("val_")
    trained = local.fit(proximal(trained_parameters(local.module).values(), mu))
    return Update(
        tensors_of(local.module),
        weight=trained.rows,
        metrics={**measured.metrics, "train_loss": trained.loss},
        metrics_weight=measured.rows or None,
        buffers=buffer_names(local.module),
    )


def proximal(parameters: Iterable[nn.Parameter], mu: float) -> Correction | None:
    """Returns what adds mu (w - w_t) to the gradients; w_t are the parameters' values now.

    Args:
        parameters: The parameters that are trained.
        mu: 0 or more; with 0 there is nothing to add, and None is returned.
    """
    if mu == 0:
        return None
    current = list(parameters)
    anchor = [each.detach().clone() for each in current]

    def add() -> None:
        moved = torch._foreach_sub([each.detach() for each in current], anchor)
        torch._foreach_add_(gradients_of(current), moved, alpha=mu)

    return add
