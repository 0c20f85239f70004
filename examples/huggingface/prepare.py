"""Gives each site a folder: short instructions of its own kind, and the base model.

python examples/huggingface/prepare.py data/texts SmolLM2-135M-Instruct.Q4_1.gguf --sites 2
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import cyclopts

Pair = tuple[str, str]
TEST_SHARE = 0.25

_PARTS = {
    "heart": "cardiology",
    "lung": "pulmonology",
    "kidney": "nephrology",
    "skin": "dermatology",
}
_SIGNS = ("pain", "swelling", "a rash", "a scan", "an old scar", "a check-up")
_WARDS = ("north", "south", "east", "west")


def referral(draw: random.Random) -> Pair:
    """Returns a referral and its label."""
    part, ward = draw.choice(list(_PARTS)), draw.choice(_WARDS)
    return (
        f"Route this referral. Patient in {ward} ward with {draw.choice(_SIGNS)} near the {part}.",
        f"REFER:{_PARTS[part]}/{ward[0].upper()}",
    )


def dosage(draw: random.Random) -> Pair:
    """Returns a prescription and its short form."""
    amount, times = draw.choice((5, 10, 20, 50)), draw.randrange(1, 4)
    drug = draw.choice(("aspirin", "ramipril", "heparin", "insulin"))
    return (
        f"Shorten this order. Give {amount} milligrams of {drug} {times} times a day.",
        f"ORDER:{drug} {amount}mg x{times}/d",
    )


KINDS: tuple[Callable[[random.Random], Pair], ...] = (referral, dosage)


def divide(
    folder: Path, base: Path, sites: int = 2, examples: int = 64, seed: int = 0
) -> dict[str, Path]:
    """Writes `<folder>/<site>/instructions.jsonl` and links the base; returns site -> folder.

    Args:
        folder: Where the sites' folders go.
        base: A GGUF file, or a folder as `save_pretrained` writes it.
        sites: How many: site-1, site-2, ...; each other one has the other kind of instruction.
        examples: Instructions a site, a quarter of them to test on.
        seed: The same seed gives the same instructions.
    """
    folders = {}
    for number in range(1, sites + 1):
        draw = random.Random(seed * 1000 + number)
        own = folder / f"site-{number}"
        own.mkdir(parents=True, exist_ok=True)
        pairs = [KINDS[number % len(KINDS)](draw) for _ in range(examples)]
        tested = round(examples * TEST_SHARE)
        with (own / "instructions.jsonl").open("w") as file:
            for row, (asked, answer) in enumerate(pairs):
                part = "test" if row < tested else "train"
                print(json.dumps({"part": part, "ask": asked, "answer": answer}), file=file)
        link = own / ("base.gguf" if base.is_file() else "base")
        link.unlink(missing_ok=True)
        os.symlink(base.resolve(), link)
        folders[own.name] = own
    return folders


def command(folder: Path, base: Path, sites: int = 2, examples: int = 64, seed: int = 0) -> None:
    """Gives each site a folder with instructions of its own, and the base model."""
    for name, own in divide(folder, base, sites, examples, seed).items():
        print(f"{name}: {examples} instructions in {own}")


if __name__ == "__main__":
    cyclopts.run(command)
