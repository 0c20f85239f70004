"""A real job of four sites under a seeded schedule of faults, and what became of it.

    python -m benchmarks.chaos --minutes 5 --seed 1 --json FILE

`completed`: the job ended well. `model_equal`: its model is, bit by bit, the one of a run without
faults in which the same sites contribute to the same rounds. `rounds_lost`: rounds that had been
snapshotted and were done again. `left_running`: processes after the federation was stopped.
`recovery_s`: for each fault, seconds until the next round was done whose work began after it
(`next_round_s`), and until the site that it hit, or each of them, was counted in such a round
(`sites_back_s`). `mended_s` are seconds until what a person or a service manager has to mend was
mended: an agent started again, a line that is up, room on a disk.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import cyclopts

from benchmarks.besieged import CONTROLLER, SITE, Besieged, besieged
from benchmarks.exact_job import ExactJob, Work, paced, set_pace, submitted
from benchmarks.faults import FAULTS, Scene, Strike, strike
from benchmarks.job_watch import JobWatch
from benchmarks.machine import describe_machine
from prefect_federated.agents.sandbox import SERVER
from prefect_federated.messages import JsonValue

Said: TypeAlias = Callable[[str], None]

SITES = [f"site-{number}" for number in range(1, 5)]

_ROUNDS_A_MINUTE = 100
_STARTS_IN_S = 120.0
_RECOVERS_IN_S = 180.0
_ROUND_S = 2.0  # at most, once nothing fails and nothing waits any more
_IDLE_IN_S = 30.0
_TWO_AT_ONCE = 0.25
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Args:
        minutes: How long faults happen.
        seed: Seed of the model, of the faults and of their order.
        model_bytes: Size of the model.
        faults: Names of the faults; all of them if empty.
        in_order: Whether each fault happens once, in this order, one at a time, however long that
            takes. Otherwise they happen in a random order, some two at once, until the time is
            over.
    """

    minutes: float = 2.0
    seed: int = 0
    model_bytes: int = 2_000_000
    faults: Sequence[str] = ()
    in_order: bool = False

    @property
    def work(self) -> Work:
        """What the job does: rounds for the time, at the pace that its sites are given."""
        rounds = max(20, int(self.minutes * _ROUNDS_A_MINUTE))
        return Work(rounds, self.model_bytes // 8, self.seed)

    def hands(self, source: random.Random) -> Iterator[list[str]]:
        """Yields the faults that happen together, without end unless `in_order`."""
        names = list(self.faults or FAULTS)
        if self.in_order:
            yield from ([name] for name in names)
            return
        while True:
            source.shuffle(names)
            deck = list(names)
            while deck:
                size = 2 if source.random() < _TWO_AT_ONCE else 1
                yield [deck.pop() for _ in range(min(size, len(deck)))]


def run_under_faults(plan: Plan, folder: Path, say: Said = print) -> dict[str, JsonValue]:
    """Runs a job under faults and returns what became of it.

    Args:
        plan: What is to happen.
        folder: A folder for all that is written, empty or not there yet.
        say: Told, in a line, what happens.
    """
    machine, notes = describe_machine(), folder / "notes"
    notes.mkdir(parents=True)
    set_pace(notes, 0.3)
    with besieged(folder / "federation", SITES) as federation:
        result = _run_job(plan, federation, notes, say)
    left = federation.left_running()
    result |= {"left_running": len(left), "left_running_names": [*left]}
    return {**asdict(plan), **result, "machine": machine}


def _run_job(plan: Plan, federation: Besieged, notes: Path, say: Said) -> dict[str, JsonValue]:
    began = time.time()
    with submitted(plan.work, federation, notes) as job:
        say(f"job {job.id}: {plan.work.rounds} rounds, {plan.model_bytes / 1e6:g} MB")
        with paced(job, plan.minutes):
            _wait(_STARTS_IN_S, lambda: job.watch.round > 1 or job.is_over)
            strikes = list(_strikes(plan, job, say))
        run = job.wait(_RECOVERS_IN_S + plan.work.rounds * _ROUND_S)
        total_s = time.time() - began
        _wait(_IDLE_IN_S, lambda: not _processes_of_jobs(federation))
        remaining = _processes_of_jobs(federation)
    state = run.get("state", {"type": "UNKNOWN", "message": "the server does not answer"})
    completed = state["type"] == "COMPLETED"
    wrongs = ["the job has no model"]
    lost = list(job.watch.lost)
    if completed:
        wrongs, lost = job.wrongs(job.reference(run))
    return {
        "completed": completed,
        "state": f"{state['type']}: {state['message'] or ''}",
        "model_equal": not wrongs,
        "wrongs": [*wrongs],
        "rounds_lost": len(lost),
        "rounds_lost_names": [*lost],
        "recovery_s": [_recovery(each, job.watch, began) for each in strikes],
        "rounds": plan.work.rounds,
        "total_s": round(total_s, 1),
        "attempts": run.get("run_count", 0),
        "processes_after_the_job": [*remaining],
    }


def _strikes(plan: Plan, job: ExactJob, say: Said) -> Iterator[Strike]:
    """Has faults happen until the time is over, or the job is; waits for each recovery."""
    source = random.Random(plan.seed)
    scene = Scene(job.federation, job.id, job.notes, plan.model_bytes)
    end = time.monotonic() + plan.minutes * 60
    for hand in plan.hands(source):
        if job.is_over or (not plan.in_order and time.monotonic() > end):
            return
        time.sleep(source.uniform(0.2, 2))
        sites = source.sample(SITES, len(hand))
        seeds = [source.getrandbits(32) for _ in hand]
        with ThreadPoolExecutor(len(hand)) as pool:
            struck = list(
                pool.map(
                    lambda name, site, seed: strike(name, scene, site, random.Random(seed)),
                    hand, sites, seeds,
                )
            )  # fmt: skip
        for name, each in zip(hand, struck, strict=True):
            if each is None:
                say(f"{name}: there was nothing to hit")
                continue
            yield each
            _wait(_RECOVERS_IN_S, partial(_is_over, each, job))
            say(_line(_recovery(each, job.watch, each.at), each))


def _is_over(struck: Strike, job: ExactJob) -> bool:
    """Whether all that a fault hit is back; starts agents again that have ended by themselves."""
    recovery = _recovery(struck, job.watch, struck.at)
    if None not in (recovery["next_round_s"], recovery["sites_back_s"]) and job.run():
        return True  # and the server answers, so that the next fault meets a whole federation
    for name in job.federation.start_what_ended():
        print(f"the agent of {name} had ended by itself and was started again")
    return job.is_over


def _recovery(struck: Strike, watch: JobWatch, began: float) -> dict[str, JsonValue]:
    sites = SITES if struck.site is None else [struck.site]
    times = [watch.next_round_at(struck.at, site) for site in sites]
    back = [time for time in times if time is not None]
    return {
        "fault": struck.fault,
        "at": struck.site or SERVER,
        "detail": struck.detail,
        "at_s": round(struck.at - began, 2),
        "mended_s": round(struck.mended_at - struck.at, 2),
        "next_round_s": _since(struck.at, watch.next_round_at(struck.at)),
        "sites_back_s": _since(struck.at, max(back)) if len(back) == len(sites) else None,
    }


def _since(begin: float, end: float | None) -> float | None:
    return None if end is None else round(end - begin, 2)


def _line(recovery: Mapping[str, JsonValue], struck: Strike) -> str:
    detail = f" ({struck.detail})" if struck.detail else ""
    return (
        f"{struck.fault} at {recovery['at']}{detail}: next round after "
        f"{recovery['next_round_s']} s, sites back after {recovery['sites_back_s']} s"
    )


def _processes_of_jobs(federation: Besieged) -> list[str]:
    return [
        f"{what} at {agent}"
        for agent in [SERVER, *SITES]
        for what in (CONTROLLER, SITE)
        if federation.find(agent, what) is not None
    ]


def _wait(timeout_s: float, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def main(
    *,
    minutes: float = 5.0,
    seed: int = 0,
    model_mb: Annotated[
        float | None, cyclopts.Parameter(help="Size of the model; drawn by the seed if empty.")
    ] = None,
    fault: Annotated[
        list[str] | None, cyclopts.Parameter(help="A fault that happens; may be given repeatedly.")
    ] = None,
    folder: Annotated[
        Path | None, cyclopts.Parameter(help="Folder for logs and states; kept if given.")
    ] = None,
    json_file: Annotated[Path | None, cyclopts.Parameter(name="--json")] = None,
) -> None:
    """Run a job under faults and print what became of it as JSON."""
    for name in fault or ():
        if name not in FAULTS:
            raise SystemExit(f"there is no fault {name!r}; there are: {', '.join(FAULTS)}")
    size_mb = model_mb or random.Random(seed).choice([1, 2, 4, 4, 16])
    plan = Plan(minutes, seed, int(size_mb * 1e6), tuple(fault or ()))
    with (
        tempfile.TemporaryDirectory(prefix="prefect-federated-chaos-")
        if folder is None
        else nullcontext(str(folder.absolute()))
    ) as place:
        result = run_under_faults(plan, Path(place))
    text = json.dumps(result, indent=2)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)
    good = result["completed"] and result["model_equal"]
    if not good or result["rounds_lost"] or result["left_running"]:
        raise SystemExit(1)


if __name__ == "__main__":
    cyclopts.run(main)
