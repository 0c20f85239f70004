"""SCAFFOLD at a site.

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
Algorithm 1, lines 7 to 13. We send y_i in the place of y_i - x; the server subtracts.
"""

import torch
from torch import nn

from prefect_federated.adapters.torch.settings import at_least_0
from prefect_federated.adapters.torch.tensors import (
    as_array,
    buffer_names,
    load_tensors,
    tensors_of,
)
from prefect_federated.adapters.torch.training import (
    Correction,
    LocalModel,
    gradients_of,
    trained_parameters,
)
from prefect_federated.control_variates import LocalControl, joined, option_of
from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Tensors, Update


def scaffold(local: LocalModel, received: Tensors) -> Update:
    """Returns y_i, and c_i+ - c_i with the prefix of control variates; keeps c_i+ at the site.

    Raises:
        ConfigurationError: as `LocalControl` and `LocalModel.fit`; a proximal term is set; or
            option 2 with an optimizer other than plain SGD.
        SnapshotCorrupt: the file of c_i is damaged.
        UpdateRejected: the loss is not finite any more.
    """
    site, module = local.site, local.module
    option = option_of(site)
    if at_least_0(site, "mu", 0):
        raise ConfigurationError("config 'mu' is FedProx's; SCAFFOLD has no proximal term.")
    lr = _plain_lr(local.fresh_optimizer()) if option == 2 else 0.0
    control = LocalControl(received, site, _names(module))
    load_tensors(module, control.model)
    measured = local.measure("val_")
    at_received = _gradient(local) if option == 1 else {}
    trained = local.fit(_corrected_by(control.correction, module))
    tensors = tensors_of(module)
    if option == 1:
        change = control.option_1(at_received)
    else:
        change = control.option_2(tensors, trained.steps, lr)
    return Update(
        joined(tensors, change),
        weight=trained.rows,
        metrics={**measured.metrics, "train_loss": trained.loss},
        metrics_weight=measured.rows or None,
        buffers=buffer_names(module),
    )


def _corrected_by(correction: Tensors, module: nn.Module) -> Correction:
    """Returns what adds c - c_i to the gradients: line 10, y <- y - lr (g(y) - c_i + c)."""
    known = {name: each for name, each in trained_parameters(module).items() if name in correction}
    added = [
        torch.tensor(correction[name], dtype=each.dtype, device=each.device)
        for name, each in known.items()
    ]

    def add() -> None:
        if added:
            torch._foreach_add_(gradients_of(known.values()), added)

    return add


def _gradient(local: LocalModel) -> Tensors:
    """Returns g_i(x) under all names that have a control variate: option I of line 12."""
    gradients = local.gradient()
    named = dict(local.module.named_parameters(remove_duplicate=False))
    return {
        name: as_array(gradients.get(named[name], torch.zeros_like(named[name])))
        for name in _names(local.module)
    }


def _names(module: nn.Module) -> list[str]:
    """Returns the names of the parameters that have a control variate, tied ones under each."""
    named = module.named_parameters(remove_duplicate=False)
    return [name for name, each in named if each.is_floating_point() or each.is_complex()]


def _plain_lr(optimizer: torch.optim.Optimizer) -> float:
    """Returns the learning rate of plain SGD, which option 2 divides by."""
    groups = optimizer.param_groups
    rates = {float(group["lr"]) for group in groups}
    momentum = max(group.get("momentum", 0) for group in groups)
    if not isinstance(optimizer, torch.optim.SGD) or momentum or len(rates) > 1:
        raise ConfigurationError(
            "option 2 of SCAFFOLD takes (x - y_i) / (steps * lr) for the mean gradient, which it "
            f"is with plain SGD; this is {type(optimizer).__name__} with lr {sorted(rates)} and "
            f"momentum {momentum}. Set the job's option to 1, or train with SGD without momentum "
            "and with one learning rate."
        )
    return rates.pop()
