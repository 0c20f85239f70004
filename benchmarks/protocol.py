"""The protocol under simulated time and a network of chance, seed after seed.

    python -m benchmarks.protocol --seeds 10000 --json FILE
    python -m benchmarks.protocol --seed 4711          # replays one, and prints what happened

After every step it is checked that an update counts at most once, none counts that was not asked
for, there is no aggregate below the quorum, rounds only go up, of two controllers at most one
advances, and every call ends by its deadline; and at the end, that the job has come to its end.
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cyclopts

from benchmarks.machine import describe_machine
from benchmarks.simulated.federation import SimulatedFederation


def main(
    *,
    seeds: int = 500,
    first: int = 0,
    seed: int | None = None,
    processes: int | None = None,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Run the seeds from `first` on, or replay one, and print what was found as JSON."""
    if seed is not None:
        print(*run_seed(seed, keep=1_000_000).trace, sep="\n")
        return
    began = time.monotonic()
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        ran = pool.map(partial(run_seed, keep=60), range(first, first + seeds), chunksize=20)
        results = list(ran)
    failures = [result for result in results if result.violation is not None]
    for failure in failures[:5]:
        print(*failure.trace, f"seed {failure.seed}: {failure.violation}", sep="\n")
    told = {
        "seeds": seeds,
        "violations": len(failures),
        "failed_seeds": [failure.seed for failure in failures[:100]],
        "notes": sum(result.notes for result in results),
        "steps": sum(result.steps for result in results),
        "rounds": sum(result.rounds for result in results),
        "attempts": sum(result.attempts for result in results),
        "seconds": round(time.monotonic() - began, 1),
        "machine": describe_machine(),
    }
    text = json.dumps(told, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)
    raise SystemExit(1 if failures else 0)


@dataclass(frozen=True)
class Outcome:
    """What became of one seed.

    Args:
        seed: The seed, which replays it.
        violation: What happened that must not; None if all held.
        trace: What happened, the last lines.
        steps: Things that happened.
        rounds: Rounds that were committed.
        attempts: Controllers that there were.
        notes: What sites said while they worked, as often as a controller took it.
    """

    seed: int
    violation: str | None
    trace: list[str]
    steps: int
    rounds: int
    attempts: int
    notes: int


def run_seed(seed: int, keep: int = 60) -> Outcome:
    """Runs one seed, keeping the last `keep` lines of what happened."""
    federation = SimulatedFederation(seed, keep)
    violation = None
    try:
        federation.run()
    except Exception as error:  # whatever it is, the seed replays it
        violation = f"{type(error).__name__}: {error}"
    return Outcome(
        seed, violation, list(federation.world.trace), federation.steps,
        federation.store.round, len(federation.controllers), federation.notes,
    )  # fmt: skip


if __name__ == "__main__":
    cyclopts.run(main)
