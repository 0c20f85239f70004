"""What the integration tests share: a running federation, its jobs, and what there is to see."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import numpy as np
import psutil
from numpy.typing import NDArray
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, StateType, TaskRun

from prefect_federated.agents.sandbox import USER, Sandbox, start_sandbox
from prefect_federated.tasks.labels import SITE_RUNS
from prefect_federated.tasks.snapshots import ModelRef, read_model

EXECUTORS = Path(__file__).parent / "executors"
PATIENCE_S = 120.0
CONTROLLER, SITE = "fed-controller", "fed-site"  # how the processes of runs are named

Found = TypeVar("Found")


def eventually(find: Callable[[], Found | None], what: str, within_s: float = PATIENCE_S) -> Found:
    """Waits until `find()` returns something true, and returns that."""
    end = time.monotonic() + within_s
    while not (found := find()):
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Call:
    """A site task as its site saw it begin."""

    site: str
    round: int
    pid: int
    at: float


@dataclass(frozen=True)
class Running:
    """A running federation and a client of its API."""

    sandbox: Sandbox
    client: SyncPrefectClient
    environment: Mapping[str, str]
    notes: Path

    def submit(
        self,
        rounds: int = 3,
        script: Mapping[str, str] | None = None,
        executor: str = "scripted",
        sites: Sequence[str] | None = None,
        **parameters: object,
    ) -> "Job":
        """Starts a job whose sites follow a script, and returns it."""
        self.wait_until_idle()
        asked = list(sites or self.sandbox.sites)
        parameters = {
            **self.parameters(rounds, script, asked), "executor": executor,
            **({} if sites is None else {"sites": asked}), **parameters,
        }  # fmt: skip
        deployment = self.client.read_deployment_by_name("fedavg/default")
        run = self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        return self.job(run.id, parameters)

    def parameters(
        self, rounds: int, script: Mapping[str, str] | None = None, sites: Sequence[str] = ()
    ) -> dict[str, object]:
        """Returns the parameters of a job whose sites follow a script."""
        notes = self.notes / f"job-{len(list(self.notes.iterdir()))}"
        notes.mkdir()
        config = {
            "sites": list(sites or self.sandbox.sites), "rounds": rounds, "notes": str(notes),
            "script": dict(script or {}),
        }  # fmt: skip
        return {"executor": "scripted", "rounds": rounds, "config": config}

    def job(self, run_id: UUID, parameters: Mapping[str, object]) -> "Job":
        """Returns a job that was started with these parameters."""
        config = parameters["config"]
        assert isinstance(config, dict)
        return Job(self, run_id, Path(config["notes"]), config["sites"], config["rounds"])

    def command(self, *prefect: str, kit: str = USER) -> list[str]:
        """Returns the command line of a `prefect` command through `connect`, as a person types."""
        return [
            sys.executable, "-m", "prefect_federated", "connect",
            "--kit", str(self.sandbox.kit_folder(kit)), "--",
            sys.executable, "-m", "prefect", *prefect,
        ]  # fmt: skip

    def pid(self, name: str) -> int:
        """Returns the process id of the server's or a site's agent."""
        return next(process.pid for process in self.sandbox.processes if process.name == name)

    def processes(self) -> list[psutil.Process]:
        """Returns the processes of the federation that run."""
        found: list[psutil.Process] = []
        for agent in self.sandbox.processes:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(agent.pid)
                found += [process, *process.children(recursive=True)]
        return [process for process in found if name_of(process)]

    def forks(self, *names: str) -> list[psutil.Process]:
        """Returns the processes of flow runs, of one job at a time; of all kinds if none is named.

        Prefect knows of another process for each, which waits for it and ends as it ends.
        """
        wanted = names or (CONTROLLER, SITE)
        return [process for process in self.processes() if name_of(process) in wanted]

    def wait_until_idle(self) -> None:
        """Waits until no process of a job is left."""
        eventually(lambda: not self.forks(), "the jobs' processes end")

    def end(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to an agent and waits until it and all of its processes have ended."""
        agent = psutil.Process(self.pid(name))
        family = [agent, *agent.children(recursive=True)]
        agent.send_signal(number)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, f"still running 30 s after {number.name}: {alive}"

    def text_of_logs(self, run_id: UUID) -> str:
        """Returns the log lines of a flow run that the server has."""
        lines = self.client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
        )
        return "\n".join(line.message for line in lines)


@dataclass(frozen=True)
class Job:
    """A job of a running federation."""

    federation: Running
    run_id: UUID
    notes: Path
    sites: list[str]
    rounds: int
    _killed: set[int] = field(default_factory=set)

    def open_gate(self, round: int) -> None:
        """Lets the sites that wait in a round go on."""
        (self.notes / f"open-{round}").touch()

    def calls(self, round: int | None = None, after: float = 0.0) -> list[Call]:
        """Returns the site tasks that have begun, in order."""
        file = self.notes / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        calls = [Call(**json.loads(line)) for line in lines]
        return [call for call in calls if round in (None, call.round) and call.at > after]

    def wait_for_round(self, round: int, sites: int | None = None) -> list[Call]:
        """Waits until the sites are at work on a round."""
        wanted = len(self.sites) if sites is None else sites

        def at_work() -> list[Call] | None:
            state = self.run.state
            assert state is None or not state.is_final() or state.is_crashed(), state
            calls = self.calls(round)
            return calls if len({call.site for call in calls}) >= wanted else None

        return eventually(at_work, f"{wanted} sites at work on round {round}")

    @property
    def run(self) -> FlowRun:
        """The controller's flow run as it is now."""
        return self.federation.client.read_flow_run(self.run_id)

    def wait(self, within_s: float = PATIENCE_S) -> FlowRun:
        """Waits until the job has ended for good, and returns its flow run."""

        def ended() -> FlowRun | None:
            run = self.run
            over = run.state is not None and run.state.is_final() and not run.state.is_crashed()
            return run if over else None

        try:
            return eventually(ended, f"job {self.run_id} ends", within_s)
        except AssertionError as error:
            run = self.run
            raise AssertionError(
                f"{error}: {run.state!r}, labels {run.labels}, calls {self.calls()[-6:]}"
            ) from None

    def site_runs(self) -> dict[str, FlowRun]:
        """Returns the sites' flow runs as they are now."""
        ids = json.loads(str(self.run.labels.get(SITE_RUNS, "{}")))
        read = self.federation.client.read_flow_run
        return {site: read(UUID(run_id)) for site, run_id in ids.items()}

    def wait_for_site_runs(self, kind: StateType, within_s: float = 30) -> dict[str, FlowRun]:
        """Waits until all of the sites' runs have ended, and checks how."""

        def ended() -> dict[str, FlowRun] | None:
            runs = self.site_runs()
            over = all(run.state is not None and run.state.is_final() for run in runs.values())
            return runs if over else None

        runs = eventually(ended, "the sites' runs end", within_s)
        states = {site: run.state and run.state.type for site, run in runs.items()}
        assert set(states.values()) == {kind}, {s: r.state for s, r in runs.items()}
        return runs

    def controller(self) -> psutil.Process:
        """Returns the controller's process, once it has one."""

        def found() -> psutil.Process | None:
            forks = [p for p in self.federation.forks(CONTROLLER) if p.pid not in self._killed]
            return forks[0] if forks else None

        return eventually(found, "the controller has a process")

    def kill_controller(self) -> float:
        """Ends the controller's process with SIGKILL; returns when (seconds since the epoch)."""
        process = self.controller()
        self._killed.add(process.pid)
        process.kill()
        return time.time()

    def kill_controller_until_failed(self) -> FlowRun:
        """Ends what Prefect knows as the controller's process until the job is given up."""

        def failed() -> FlowRun | None:
            run = self.run
            pid = int((run.infrastructure_pid or "").rpartition(":")[2] or 0)
            if pid not in self._killed and run.state is not None and run.state.is_running():
                self._killed.add(pid)
                psutil.Process(pid).kill()
            return run if run.state is not None and run.state.is_failed() else None

        return eventually(failed, "the job is given up")

    def task_runs(self) -> list[TaskRun]:
        """Returns the job's Prefect task runs."""
        return self.federation.client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[self.run_id])), limit=200
        )

    def artifacts(self) -> dict[str, Artifact]:
        """Returns the job's artifacts, the newest of each key."""
        found = self.federation.client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.run_id]))
        )
        return {str(artifact.key): artifact for artifact in found}

    @property
    def results(self) -> Path:
        """The server's folder of results."""
        return self.federation.sandbox.state("server") / "results"

    def reference(self) -> ModelRef:
        """Returns what the flow returned: where its model is."""
        state = self.run.state
        assert state is not None
        assert state.is_completed(), state
        file = self.results / str(state.data.storage_key)
        record = json.loads(file.read_text())  # a pickle would not do
        return ModelRef.model_validate(record["data"])

    def counted(self) -> NDArray[np.float64]:
        """Returns the trained model: share of each site (column) in each round (row)."""
        return np.asarray(read_model(Path(self.reference().path))["counted"], np.float64)

    def check_counted_once(self, absent: Mapping[int, Sequence[str]] | None = None) -> None:
        """Checks the model against its closed form: each site once a round, with its weight.

        Args:
            absent: Round -> sites that were not counted in it.
        """
        weights = np.tile(np.arange(1.0, len(self.sites) + 1), (self.rounds, 1))
        for round, sites in (absent or {}).items():
            weights[round - 1, [self.sites.index(site) for site in sites]] = 0
        expected = weights / weights.sum(axis=1, keepdims=True)
        # Sums of a few float64 shares: exact but for their last digits.
        np.testing.assert_allclose(self.counted(), expected, rtol=0, atol=1e-12)


def name_of(process: psutil.Process) -> str:
    """Returns a process's name, "" if it has ended."""
    try:
        return process.name() if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""


@contextmanager
def running(folder: Path, sites: Sequence[str]) -> Iterator[Running]:
    """Starts a federation in a folder, and ends it."""
    sandbox = start_sandbox(folder / "sandbox", sites, code=[EXECUTORS])
    try:
        with attended(sandbox, folder) as federation:
            yield federation
    finally:
        sandbox.stop()


@contextmanager
def attended(sandbox: Sandbox, folder: Path) -> Iterator[Running]:
    """Opens a client of a sandbox's API."""
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    with (
        sandbox.connected() as environment,
        SyncPrefectClient(environment["PREFECT_API_URL"]) as client,
    ):
        yield Running(sandbox, client, environment, notes)
