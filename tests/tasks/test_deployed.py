"""The heartbeat of a deployed job, whatever fails in it, and its labels at Prefect."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Running

from prefect_federated.errors import NotEnoughSites, StaleController
from prefect_federated.tasks import deployed
from prefect_federated.tasks.labels import BEAT, ENDPOINT, EPOCH, put_labels
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.site_runs import SiteRuns
from prefect_federated.transport.hub import Hub
from tests.agents.network import eventually

JOB = JobParameters(executor="any.thing")


class Away:
    """A Prefect client whose API says what a test wants, beat by beat."""

    def __init__(self) -> None:
        self.beats: list[str] = []
        self.labels: dict[str, Any] = {EPOCH: 1}

    def read_flow_run(self, run_id: UUID) -> Any:
        return SimpleNamespace(labels=dict(self.labels), state=Running())

    def update_flow_run_labels(self, run_id: UUID, labels: dict[str, Any]) -> None:
        self.labels |= labels
        self.beats.append(labels[BEAT])


def beating(runs: Any, client: Away) -> deployed._Pulse:
    return deployed._Pulse(client, uuid4(), runs, "127.0.0.1:1")  # type: ignore[arg-type]


def runs_of(hub: Hub, **steps: Callable[[], None]) -> Any:
    nothing = {name: lambda: None for name in ("note_present", "mind_absent", "welcome_new")}
    return SimpleNamespace(hub=hub, **{**nothing, **steps})


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "BEAT_S", 0.01)
    monkeypatch.setattr(deployed, "_LOOK_FOR_SITES_S", 0.01)
    monkeypatch.setattr(deployed, "get_run_logger", lambda: deployed_log)


class _Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def exception(self, message: str, *values: object) -> None:
        self.said.append(message % values)

    warning = exception


deployed_log = _Log()


@pytest.mark.usefixtures("often")
def test_the_beat_goes_on_when_a_part_of_it_fails_and_says_so_once() -> None:
    deployed_log.said.clear()
    client, minded = Away(), []

    def deleted() -> None:
        raise ObjectNotFound(RuntimeError("somebody has deleted the run"))

    with beating(
        runs_of(Hub("j", 1, ["a"]), note_present=deleted, mind_absent=lambda: minded.append(1)),
        client,
    ):
        eventually(lambda: len(client.beats) > 4, "the beat goes on")
    assert client.beats[:3] == ["1.1", "1.2", "1.3"]
    assert (client.labels[EPOCH], client.labels[ENDPOINT]) == (1, "127.0.0.1:1")
    assert len(minded) > 2
    assert deployed_log.said == ["the job's heartbeat goes on, though a part of it failed"]


@pytest.mark.usefixtures("often")
def test_new_sites_are_welcomed_beside_the_beat_however_long_it_takes() -> None:
    client, is_welcome, go_on = Away(), threading.Event(), threading.Event()

    def slow() -> None:
        is_welcome.set()
        assert go_on.wait(20)

    with beating(runs_of(Hub("j", 1, ["a"]), welcome_new=slow), client):
        assert is_welcome.wait(10)
        count = len(client.beats)
        eventually(lambda: len(client.beats) > count + 3, "the beat goes on")
        go_on.set()


@pytest.mark.usefixtures("often")
def test_an_epoch_that_another_patch_has_undone_is_put_back() -> None:
    client = Away()
    client.labels.clear()
    with beating(runs_of(Hub("j", 1, ["a"])), client):
        eventually(lambda: client.labels.get(EPOCH) == 1, "the epoch is there again")


@pytest.mark.usefixtures("often")
def test_a_controller_that_freezes_in_a_beat_undoes_nothing_of_a_newer_one() -> None:
    class Frozen(Away):
        """Freezes just before the labels are patched, until a newer attempt has taken over."""

        def update_flow_run_labels(self, run_id: UUID, labels: dict[str, Any]) -> None:
            self.labels[EPOCH] = 2
            super().update_flow_run_labels(run_id, labels)

    client, hub = Frozen(), Hub("j", 1, ["a"])
    with beating(runs_of(hub), client):
        eventually(lambda: client.beats, "it beats once more")
        with pytest.raises(StaleController, match="attempt 2 of this job has taken over"):
            eventually(hub.raise_if_stale, "it learns that it is stale")
    assert client.labels[EPOCH] == 2


def test_a_stale_controller_starts_no_site_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's run that has completed since looks to it like one that ended before its time."""

    def stale() -> None:
        raise StaleController("attempt 2 of this job has taken over; attempt 1 stops.")

    monkeypatch.setattr("prefect_federated.tasks.site_runs.get_run_logger", lambda: deployed_log)
    run = SimpleNamespace(id=uuid4(), state=Completed())
    client: Any = SimpleNamespace(
        read_flow_runs=lambda **query: [run],
        set_flow_run_state=lambda *_, **__: pytest.fail("a site's run was started again"),
    )
    runs = SiteRuns(client, uuid4(), Hub("j", 1, ["a"]), JOB, stale)
    runs._runs = {"a": run.id}
    with pytest.raises(StaleController):
        runs.mind_absent()


def test_the_api_is_not_asked_why_sites_are_missing_while_the_hub_is_locked() -> None:
    hub = Hub("j", 1, ["a", "b"])
    asked: list[str] = []

    def why_absent(site: str) -> str:
        other = threading.Thread(target=hub.attached, daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), "the hub is locked"
        asked.append(site)
        return "its worker sleeps"

    job = JOB.model_copy(update={"join_timeout_s": 0.05})
    with pytest.raises(NotEnoughSites, match=r"0 of the 2 .* within 0.05 s. Missing: a: its wor"):
        deployed._wait_for_sites(job, SimpleNamespace(hub=hub, why_absent=why_absent), ["a", "b"])  # type: ignore[arg-type]
    assert asked == ["a", "b"]


def test_labels_that_threads_set_at_the_same_time_are_all_there(prefect_api: str) -> None:
    """Prefect reads all labels and writes all: of two patches at once it would keep one."""

    @flow
    def nothing() -> None: ...

    with get_client(sync_client=True) as client:
        run_id = client.create_flow_run(nothing).id

        def put(thread: int) -> None:
            for number in range(8):
                put_labels(client, run_id, {f"{thread}.{number}": number})

        threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        labels = client.read_flow_run(run_id).labels
    assert {f"{t}.{n}" for t in range(4) for n in range(8)} <= labels.keys()


def test_the_runs_of_hundreds_of_sites_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's API gives 200 at most, whatever is asked for."""
    names = [f"site-{number}" for number in range(450)]
    ids = {uuid4(): name for name in names}

    def read_flow_runs(flow_run_filter: Any, limit: int = 200, offset: int = 0) -> list[Any]:
        wanted = [one for one in ids if one in flow_run_filter.id.any_]
        page = wanted[offset : offset + min(limit, 200)]
        return [SimpleNamespace(id=one, state=Running()) for one in page]

    monkeypatch.setattr("prefect_federated.tasks.site_runs.get_run_logger", lambda: deployed_log)
    client: Any = SimpleNamespace(read_flow_runs=read_flow_runs)
    runs = SiteRuns(client, uuid4(), Hub("j", 1, names), JOB, lambda: None)
    runs._runs = {name: one for one, name in ids.items()}
    assert runs.at_work() == set(names)
