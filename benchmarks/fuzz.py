"""Any bytes, for as long as one likes, for whatever reads bytes that strangers send.

    python -m benchmarks.fuzz --minutes 10

Hypothesis feeds the wire decoder, the connection's frame reader and the ClientHello parser, each in
turn, with new seeds each time. Nothing but the errors that are meant may come out, none may hang,
and memory is bounded by the system meanwhile. A failure prints the smallest bytes that show it.
"""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import cyclopts
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzzing import TARGETS

_EXAMPLES = 2_000  # of one target, before the next has its turn
_DEADLINE_MS = 5_000  # for one example, on a machine that does other things too
_ROOM_BYTES = 512 << 20  # beyond what the process has at first


def main(
    *,
    minutes: Annotated[float, cyclopts.Parameter(help="How long, at least one turn each.")] = 1.0,
    first_seed: Annotated[int, cyclopts.Parameter(help="Other seeds, other bytes.")] = 0,
) -> None:
    """Feed any bytes to whatever reads them, until the time is over or something breaks."""
    _bound_memory()
    end = time.monotonic() + minutes * 60
    examples, turn = 0, first_seed
    while True:
        for name, (check, strategies) in TARGETS.items():
            began = time.monotonic()
            _run(check, strategies, turn)
            examples += _EXAMPLES
            print(f"seed {turn}: {name} ok ({time.monotonic() - began:.1f} s)", flush=True)
        turn += 1
        if time.monotonic() >= end:
            print(f"{examples:,} examples, nothing found")
            return


def _run(
    check: Callable[..., None], strategies: Sequence[SearchStrategy[Any]], number: int
) -> None:
    @seed(number)
    @settings(
        max_examples=_EXAMPLES,
        deadline=_DEADLINE_MS,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.tuples(*strategies))
    def run(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    run()


def _bound_memory() -> None:
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM_BYTES, resource.RLIM_INFINITY))


if __name__ == "__main__":
    cyclopts.run(main)
