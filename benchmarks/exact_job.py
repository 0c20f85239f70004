"""A deployed job of the exact executor: submitted, watched, paced, and checked at its end."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prefect.client.orchestration import SyncPrefectClient

from benchmarks.besieged import Besieged
from benchmarks.exact_model import COUNTED, NUMBERS, contributors, expected
from benchmarks.job_watch import JobWatch
from prefect_federated.agents.sandbox import SERVER
from prefect_federated.tasks.snapshots import ModelRef, read_model

ENDS = ("COMPLETED", "FAILED", "CANCELLED")
LOST_AFTER_S = 10.0
ROUND_TIMEOUT_S = 60.0

_LOOK_EVERY_S = 0.5
_FEW_ROUNDS = 40


@dataclass(frozen=True)
class Work:
    """What a job is to do.

    Args:
        rounds: Rounds to train.
        floats: Numbers (float64) in the model.
        seed: Seed of the model.
    """

    rounds: int
    floats: int
    seed: int


@dataclass
class ExactJob:
    """A job that runs.

    Args:
        work: What it does.
        federation: Where it runs.
        id: Of the controller's flow run.
        notes: The folder that its executor reads and writes.
        watch: What is seen of it.
    """

    work: Work
    federation: Besieged
    id: str
    notes: Path
    watch: JobWatch
    _api: httpx.Client

    def run(self) -> dict[str, Any]:
        """Returns the controller's flow run; {} while the server does not answer."""
        try:
            answer = self._api.get(f"flow_runs/{self.id}").raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return {}
        return found

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good, as far as the server answers."""
        return self.run().get("state", {}).get("type") in ENDS

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """Waits until the job has ended; returns its run as it is then, or after the time."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over and time.monotonic() < deadline:
            self.federation.start_what_ended()
            time.sleep(_LOOK_EVERY_S)
        return self.run()

    def reference(self, run: dict[str, Any]) -> ModelRef:
        """Returns what the flow returned."""
        results = self.federation.sandbox.state(SERVER) / "results"
        record = json.loads((results / run["state"]["data"]["storage_key"]).read_text())
        return ModelRef.model_validate(record["data"])

    def wrongs(self, reference: ModelRef) -> tuple[list[str], list[str]]:
        """Returns what is wrong with the model, and which rounds were lost: both empty, or not so.

        The model is compared, bit by bit, with one that is computed from the contributions alone.
        """
        model = read_model(Path(reference.path))
        lost = list(self.watch.lost)
        rows = [row["round"] for row in reference.history if row["kind"] == "train"]
        if rows != list(range(1, self.work.rounds + 1)):
            lost.append(f"the table has the rounds {rows}")
        try:
            rounds = contributors(np.asarray(model[COUNTED]))
        except ValueError as error:
            return [str(error)], lost
        sites = self.federation.sites
        for done in self.watch.done:
            counted = {sites[place] for place in rounds[done.round - 1]}
            if counted != done.sites:
                lost.append(
                    f"round {done.round} has {sorted(counted)}; {sorted(done.sites)} were in its "
                    "snapshot"
                )
        if not all(rounds):
            return [f"nobody was counted in round {rounds.index([]) + 1}"], lost
        numbers = expected(self.work.seed, self.work.floats, rounds)
        if not np.array_equal(np.asarray(model[NUMBERS]), numbers):
            return ["the numbers are not those of a run without faults"], lost
        return [], lost


@contextmanager
def submitted(work: Work, federation: Besieged, notes: Path) -> Iterator[ExactJob]:
    """Submits a job and watches it until the block ends."""
    config = {
        "seed": work.seed, "floats": work.floats, "rounds": work.rounds,
        "sites": federation.sites, "notes": str(notes),
    }  # fmt: skip
    parameters = {
        "executor": "benchmarks.exact_model", "rounds": work.rounds, "config": config,
        "quorum": 0.5, "lost_after_s": LOST_AFTER_S, "round_timeout_s": ROUND_TIMEOUT_S,
    }  # fmt: skip
    with (
        federation.sandbox.connected() as environment,
        SyncPrefectClient(environment["PREFECT_API_URL"]) as prefect,
        httpx.Client(
            base_url=f"{environment['PREFECT_API_URL']}/", trust_env=False, timeout=10
        ) as api,
    ):
        deployment = prefect.read_deployment_by_name("fedavg/default")
        run = prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        job = str(run.id)
        snapshots = federation.sandbox.state(SERVER) / "results" / job
        watch = JobWatch(snapshots, notes / "calls.jsonl", federation.sites)
        with watch:
            yield ExactJob(work, federation, job, notes, watch, api)


@contextmanager
def paced(job: ExactJob, minutes: float) -> Iterator[None]:
    """Has the job's site tasks take so long that it is at work during the block, not much longer.

    Args:
        job: The job.
        minutes: How long the block is expected to take.
    """
    over, deadline = threading.Event(), time.monotonic() + minutes * 60

    def keep_pace() -> None:
        while not over.wait(_LOOK_EVERY_S):
            rounds = job.work.rounds - job.watch.round
            left_s = deadline - time.monotonic()
            pace = min(max(left_s / max(rounds, 1) - 0.1, 0.3), 1.0)
            set_pace(job.notes, pace if rounds > _FEW_ROUNDS else 2.0 if rounds > 5 else 8.0)

    thread = threading.Thread(target=keep_pace, name="pace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        set_pace(job.notes, 0.0)


def set_pace(notes: Path, seconds: float) -> None:
    """Says how long site tasks take from now on."""
    part = notes / "pace.part"
    part.write_text(f"{seconds:.3f}")
    os.replace(part, notes / "pace")
