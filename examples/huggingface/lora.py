"""A LoRA fine-tune of a small language model: only the adapter's tensors travel.

A site's data folder holds `instructions.jsonl`, see prepare.py, and the base model: `base.gguf`, or
a folder `base` as `save_pretrained` writes it.
"""

import json
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefect_federated.adapters.peft import AdapterOnly
from prefect_federated.adapters.torch import TorchExecutor, TrainTest
from prefect_federated.executors import Site

MOST_TOKENS = 64
NO_TARGET = -100
_loading = Lock()


class Answers(AdapterOnly):
    """The language model with its adapter."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the scores of each next token: `(n, length)` -> `(n, length, vocabulary)`.

        There is no mask for what pads a row: it stands after all that counts.
        """
        return super().forward(input_ids=tokens, use_cache=False).logits


def build(site: Site) -> nn.Module:
    """Returns the site's own base model with an untrained adapter on its attention."""
    return Answers(
        base_model(_base(site)),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def read(site: Site) -> TrainTest:
    """Returns the site's instructions as tokens, with each answer's tokens as the targets."""
    lines = (site.data / "instructions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    parts = {
        part: [
            tokens_of(_base(site), row["ask"], row["answer"]) for row in rows if row["part"] == part
        ]
        for part in ("train", "test")
    }
    return TrainTest(train=_padded(parts["train"]), test=_padded(parts["test"]))


@cache
def tokens_of(base: Path, ask: str, answer: str) -> tuple[list[int], list[int]]:
    """Returns a row's tokens, and for each the token that is to follow, or NO_TARGET."""
    tokenizer = _tokenizer(base)
    asked = tokenizer.encode(f"Question: {ask}\nAnswer: ")
    answered = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    targets = [NO_TARGET] * (len(asked) - 1) + answered
    return (asked + answered)[:-1][:MOST_TOKENS], targets[:MOST_TOKENS]


def base_model(base: Path) -> nn.Module:
    """Returns the base model in float32, read from disk once a process."""
    with _loading:
        return _read_base(base)


@cache
def _read_base(base: Path) -> nn.Module:
    folder, file = (base.parent, base.name) if base.is_file() else (base, None)
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, local_files_only=True
    )


@cache
def _tokenizer(base: Path):  # type: ignore[no-untyped-def]
    folder, file = (base.parent, base.name) if base.is_file() else (base, None)
    return AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)


def _base(site: Site) -> Path:
    file = site.data / "base.gguf"
    return (file if file.exists() else site.data / "base").resolve()


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max((len(tokens) for tokens, _ in rows), default=0)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    targets = torch.full((len(rows), longest), NO_TARGET)
    for number, (row, after) in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
        targets[number, : len(after)] = torch.tensor(after)
    return tokens, targets


def answer_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean loss over the tokens of the answers."""
    counts = targets != NO_TARGET
    return functional.cross_entropy(scores[counts], targets[counts])


def right_tokens(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Returns the share of the answers' tokens that have the highest score."""
    counts = targets != NO_TARGET
    right = scores[counts].argmax(dim=-1) == targets[counts]
    return {"accuracy": right.double().mean().item()}


lora = TorchExecutor(
    build,
    read,
    loss=answer_loss,
    optimizer=torch.optim.AdamW,
    metrics=right_tokens,
    lr=2e-3,
    batch_size=8,
)
# By these names a job finds them when it names the module alone: executor=lora
initialize, train, evaluate = lora.initialize, lora.train, lora.evaluate
