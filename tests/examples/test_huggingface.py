from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefect_federated import simulate

EXAMPLE = Path(__file__).parents[2] / "examples" / "huggingface"
MEGABYTE = 1_000_000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of SmolLM2's architecture, random and tiny but for its vocabulary's table."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60_000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, "</s>": len(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(
        tmp_path / "base"
    )
    return tmp_path / "base"


@pytest.mark.usefixtures("prefect_api")
def test_a_federated_fine_tune_sends_the_adapter_alone_and_lowers_the_loss(
    base: Path,
    load_example: Callable[[str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    load_example("huggingface", "prepare").divide(tmp_path / "data", base, examples=32)
    # The tiny tokenizer takes a letter for a token.
    monkeypatch.setattr(load_example("huggingface", "lora"), "MOST_TOKENS", 160)
    result = simulate(
        "fedavg",
        data=tmp_path / "data",
        code=[EXAMPLE],
        output=tmp_path / "output",
        parameters={"executor": "lora", "rounds": 3, "config": {"threads": 1, "lr": 0.02}},
    )
    rows = [row for row in result.metrics if "val_loss" in row]
    losses = [float(str(row["val_loss"])) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1

    base_bytes = (base / "model.safetensors").stat().st_size
    assert base_bytes > 15 * MEGABYTE
    for row in rows:  # two sites, there and back
        assert 0 < int(str(row["bytes_sent"])) < MEGABYTE / 10
        assert 0 < int(str(row["bytes_received"])) < MEGABYTE / 10
    adapter = load_file(result.path)
    assert all("lora_" in name for name in adapter)


def test_every_answer_can_be_told_from_its_question(
    load_example: Callable[[str, str], ModuleType], tmp_path: Path
) -> None:
    import json
    import random

    prepare = load_example("huggingface", "prepare")
    for kind in prepare.KINDS:
        answers: dict[str, str] = {}
        for seed in range(500):
            asked, answer = kind(random.Random(seed))
            assert answers.setdefault(asked, answer) == answer
    (tmp_path / "base").mkdir()
    folders = prepare.divide(tmp_path / "data", tmp_path / "base", sites=3, examples=8)
    assert list(folders) == ["site-1", "site-2", "site-3"]
    rows = [json.loads(line) for line in (folders["site-1"] / "instructions.jsonl").open()]
    assert [row["part"] for row in rows].count("test") == 2
