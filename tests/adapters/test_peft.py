"""An adapter's tensors alone are the module's state, under the names that peft saves."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from prefect_federated.adapters.peft import AdapterOnly
from prefect_federated.adapters.torch import buffer_names, load_tensors, tensors_of
from prefect_federated.errors import ConfigurationError

TOKENS = torch.arange(12).reshape(2, 6)


def tiny_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def changed(module: nn.Module) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        name: random.normal(size=array.shape).astype(np.float32)
        for name, array in tensors_of(module).items()
    }


def test_only_the_adapters_tensors_are_parameters_and_state() -> None:
    base = tiny_base()
    adapter = AdapterOnly(base, lora())
    tensors = tensors_of(adapter)
    assert len(tensors) == 2 * 2 * 2  # layers, projections, A and B
    assert all("lora_" in name for name in tensors)
    assert [name for name, _ in adapter.named_parameters()] == list(tensors)
    assert buffer_names(adapter) == ()
    in_all = sum(each.numel() for each in base.parameters())
    assert sum(array.size for array in tensors.values()) < in_all / 10


def test_an_untrained_adapter_changes_nothing_and_a_loaded_one_does() -> None:
    base = tiny_base()
    expected = base(input_ids=TOKENS).logits
    adapter = AdapterOnly(base, lora()).eval()
    assert torch.equal(adapter(input_ids=TOKENS).logits, expected)

    load_tensors(adapter, changed(adapter))
    assert not torch.allclose(adapter(input_ids=TOKENS).logits, expected)
    assert torch.equal(base(input_ids=TOKENS).logits, expected)


def test_a_step_of_training_moves_the_adapter_and_never_the_base() -> None:
    base = tiny_base()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = AdapterOnly(base, lora())
    load_tensors(adapter, changed(adapter))
    start = tensors_of(adapter)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    adapter(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    for name, array in tensors_of(adapter).items():
        assert not np.array_equal(array, start[name]), name
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_two_sites_in_one_process_share_the_base_and_nothing_else() -> None:
    base = tiny_base()
    one, other = AdapterOnly(base, lora()), AdapterOnly(base, lora())
    untrained = tensors_of(other)
    load_tensors(one, changed(one))
    for name, array in tensors_of(other).items():
        np.testing.assert_array_equal(array, untrained[name])
    weights = {each.data_ptr() for each in base.parameters()}
    for adapter in (one, other):
        inner = {each.data_ptr() for each in adapter._whole[0].parameters()}
        assert weights <= inner


def test_modes_and_moves_reach_the_base() -> None:
    adapter = AdapterOnly(tiny_base(), lora())
    whole = adapter._whole[0]
    adapter.eval()
    assert not any(part.training for part in whole.modules())
    adapter.train()
    assert all(part.training for part in whole.modules())
    adapter.to(torch.float64)
    assert {each.dtype for each in whole.parameters()} == {torch.float64}
    assert {each.dtype for each in adapter.parameters()} == {torch.float64}
    assert adapter(input_ids=TOKENS).logits.dtype == torch.float64


def test_peft_itself_opens_the_jobs_model(tmp_path: Path) -> None:
    adapter = AdapterOnly(tiny_base(), lora()).eval()
    load_tensors(adapter, changed(adapter))
    save_file(tensors_of(adapter), tmp_path / "adapter_model.safetensors")
    lora().save_pretrained(str(tmp_path))

    opened = peft.PeftModel.from_pretrained(tiny_base(), str(tmp_path))
    assert torch.equal(
        opened(input_ids=TOKENS).logits,
        adapter(input_ids=TOKENS).logits,
    )


def test_an_adapter_that_is_saved_otherwise_than_trained_is_refused() -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(ConfigurationError, match="PromptTuningConfig trains tensors that peft"):
        AdapterOnly(tiny_base(), config)
