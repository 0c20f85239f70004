"""Fine-tuning with adapters from `peft` (LoRA and its kin): only the adapter's tensors travel.

`AdapterOnly` is a module for `TorchExecutor`, so all that this does (FedAvg, FedProx, SCAFFOLD,
mixed precision, ...) works on the adapter. Installed with the extra `huggingface`. It trains no
tokenizer and reads no model: the base comes from the site's own disk.
"""

import copy
from collections.abc import Callable
from typing import Any

import peft
from torch import Tensor, nn

from prefect_federated.errors import ConfigurationError


class AdapterOnly(nn.Module):
    """A base model with an adapter, whose parameters and state are the adapter's alone.

    Its tensors have the names that peft saves: a job's model is the `adapter_model.safetensors` of
    that adapter, and `PeftModel.from_pretrained` opens it beside an `adapter_config.json`.

    The base's own weights are never copied: sites that one process simulates share them, so do
    not train, cast or move `base` otherwise.

    Args:
        base: The model to fine-tune; its weights are frozen.
        config: Which adapter, such as `peft.LoraConfig(r=8, target_modules=["q_proj"])`.

    Raises:
        ConfigurationError: the adapter would train tensors that are not in its saved state.

    Source: Hu et al. 2022, arXiv 2106.09685, for LoRA.
    """

    def __init__(self, base: nn.Module, config: peft.PeftConfig) -> None:
        super().__init__()
        kept = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        # A copy of the structure, into which peft puts its layers, around the same weights.
        whole = peft.get_peft_model(copy.deepcopy(base, kept), config)
        # With "auto", the default, peft asks a hub on the internet for the base's vocabulary.
        saved = peft.get_peft_model_state_dict(whole, save_embedding_layers=False)
        by_memory = {each.data_ptr(): each for each in whole.parameters() if each.requires_grad}
        if {tensor.data_ptr() for tensor in saved.values()} != set(by_memory):
            raise ConfigurationError(
                f"{type(config).__name__} trains tensors that peft does not save as they are. "
                "Choose an adapter without such tensors, such as peft.LoraConfig."
            )
        for name, tensor in saved.items():
            *path, last = name.split(".")
            _inner(self, path).register_parameter(last, by_memory[tensor.data_ptr()])
        # In a tuple, so that the base is no part of this module's parameters and state.
        self._whole = (whole,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the base with the adapter does."""
        return self._whole[0](*args, **kwargs)

    def train(self, mode: bool = True) -> "AdapterOnly":
        """Sets training or evaluation, in the base too."""
        self._whole[0].train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdapterOnly":
        """Moves the base with the adapter, which is one of its parts."""
        self._whole[0]._apply(fn)
        return self


def _inner(module: nn.Module, path: list[str]) -> nn.Module:
    for name in path:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module
