"""Virtual sites on threads and in worker processes, without Prefect."""

import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import LoadedExecutor, Site, TaskFunction, site_tasks
from prefect_federated.messages import Message, SiteFailure, Tensor, Tensors, Update
from prefect_federated.transport import loops
from prefect_federated.transport.batches import LocalSites, ThreadRunner, VirtualSites
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import InprocEndpoint
from prefect_federated.transport.loops import LoopEndpoint
from prefect_federated.transport.waiting import Call
from prefect_federated.wire import specs_of
from tests.agents.network import eventually

MODEL = {"w": np.arange(4.0)}


@contextmanager
def virtual(
    names: str, executor: LoadedExecutor | Mapping[str, TaskFunction], threads: int = 2
) -> Iterator[Hub]:
    """Opens an endpoint with one virtual site a letter."""
    loaded = (
        executor
        if isinstance(executor, LoadedExecutor)
        else LoadedExecutor("trial", functions=executor)
    )
    hub = Hub("job-1", 1, list(names))
    with tempfile.TemporaryDirectory() as folder:
        sites = VirtualSites("trial", Path(folder) / "data", Path(folder) / "state")
        endpoint = (
            LoopEndpoint(hub, sites, loaded, threads)
            if loaded.loop is not None
            else InprocEndpoint(
                hub, tuple(loaded.functions), ThreadRunner(LocalSites(sites, loaded), threads)
            )
        )
        with endpoint:
            eventually(lambda: len(hub.attached()) == len(names), "all attach")
            try:
                yield hub
            finally:
                hub.end("completed", "done")


def ask(hub: Hub, model: Tensors = MODEL, quorum: int | float = 1.0) -> Call:
    terms = CallTerms(round=1, quorum=quorum, expect=specs_of(model))
    return hub.call("train", Message({}, model), hub.attached(), terms)


def test_every_site_trains_once_and_sees_a_read_only_model() -> None:
    seen: list[tuple[str, bool]] = []

    def train(model: Tensors, site: Site) -> Update:
        seen.append((site.name, model["w"].flags.writeable))
        return Update({"w": np.multiply(model["w"], 2)}, weight=3)

    with virtual("abcde", {"train": train}) as hub:
        replies = list(ask(hub))
    assert sorted(seen) == [(name, False) for name in "abcde"]
    assert sorted(reply.site for reply in replies) == list("abcde")
    for reply in replies:
        assert isinstance(reply, Update)
        np.testing.assert_array_equal(reply.tensors["w"], [0, 2, 4, 6])
        assert not reply.tensors["w"].flags.writeable
    assert MODEL["w"].flags.writeable


def test_no_more_site_tasks_run_at_once_than_there_are_threads() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def work(model: Tensors) -> Update:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1
        return Update(model)

    def loop() -> None:
        for task in site_tasks():
            task.reply(work(task.model).tensors)

    forms: list[LoadedExecutor | Mapping[str, TaskFunction]] = [
        {"train": lambda model, site: work(model)},
        LoadedExecutor("trial", loop=loop),
    ]
    for form in forms:
        with virtual("abcdefghij", form, threads=3) as hub:
            assert len(list(ask(hub))) == 10
    assert most[0] <= 3


def test_a_single_thread_serves_more_sites_than_there_is_room_for_updates() -> None:
    with virtual("abcdefgh", {"train": lambda model, site: Update(model)}, threads=1) as hub:
        for _ in range(3):
            assert len(list(ask(hub))) == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_two_calls_in_flight_are_read_in_any_order(threads: int) -> None:
    functions: dict[str, TaskFunction] = {"train": lambda model, site: Update(model)}
    with virtual("abcde", functions, threads=threads) as hub:
        first, second = ask(hub), ask(hub)
        assert len(list(second)) == 5
        assert len(list(first)) == 5


def test_a_call_that_nobody_reads_does_not_keep_the_endpoint_open() -> None:
    with virtual("abcde", {"train": lambda model, site: Update(model)}, threads=1) as hub:
        call = ask(hub)
        came = [call.reports[site] for site in "abcde"]
        eventually(lambda: sum(r.bytes_received > 0 for r in came) == 2, "no room for the others")
        hub.close_calls("the flow ended")


def test_a_consumer_that_stops_reading_does_not_keep_the_endpoint_open() -> None:
    with virtual("abcde", {"train": lambda model, site: Update(model)}, threads=2) as hub:
        for _ in ask(hub):
            break


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Update({"w": np.zeros(5)}), "tensor 'w' is F64 (5,), the global model has F64 (4,)"),
        (Update({"w": np.full(4, np.nan)}), "holds NaN"),
        (Update({"w": [0.0] * 4}), "tensor 'w' is a list"),  # type: ignore[dict-item]
        (Update({"w": np.array(["x"] * 4)}), "does not travel"),
        (Update(MODEL, metrics={"loss": float("nan")}), "the metric 'loss' is nan"),
        (Update(MODEL, weight=-1), "the weight -1.0; it must be above 0"),
        ("no update", "returned str"),
    ],
)
def test_an_update_that_does_not_fit_is_that_sites_failure(answer: object, says: str) -> None:
    def train(model: Tensors, site: Site) -> Update:
        return answer if site.name == "b" else Update(model)  # type: ignore[return-value]

    with virtual("ab", {"train": train}) as hub:
        replies = {reply.site: reply for reply in ask(hub, quorum=1)}
    assert isinstance(replies["a"], Update)
    failure = replies["b"]
    assert isinstance(failure, SiteFailure)
    assert says in failure.reason


def test_a_loop_that_fails_in_the_middle_of_a_task_leaves_its_turn_to_the_others() -> None:
    names = iter("abc")
    lock = threading.Lock()

    def loop() -> None:
        with lock:
            name = next(names)
        for task in site_tasks():
            if name == "a":
                raise ValueError("no rows\nsecret")
            task.reply(task.model)

    with virtual("xyz", LoadedExecutor("trial", loop=loop), threads=1) as hub:
        replies = list(ask(hub, quorum=2))
        failures = [reply.reason for reply in replies if isinstance(reply, SiteFailure)]
        assert failures == ["its loop ended: ValueError: no rows"]
        assert len(hub.attached()) == 2
        assert len(list(ask(hub))) == 2


def test_the_controllers_memory_is_the_sites_memory_and_nothing_is_encoded() -> None:
    arrays = []

    def train(model: Tensors, site: Site) -> Update:
        arrays.append((np.shares_memory(model["w"], MODEL["w"]), after := np.ones(4)))
        assert after is not None
        return Update({"w": after})

    with virtual("a", {"train": train}) as hub:
        (reply,) = list(ask(hub))
    assert isinstance(reply, Update)
    ((shared, after),) = arrays
    assert shared
    assert np.shares_memory(reply.tensors["w"], after)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("is_loop", [False, True])
def test_a_call_that_is_not_read_fills_no_memory_while_another_one_is(
    threads: int, is_loop: bool
) -> None:
    made: list[weakref.ref[Tensor]] = []
    names = "".join(chr(ord("A") + number) for number in range(40))
    asked = threading.Event()

    def work(model: Tensors, is_last: bool) -> Tensors:
        if is_last:
            asked.wait(20)
        update = np.zeros(20_000)
        made.append(weakref.ref(update))
        return {"w": update}

    def loop() -> None:
        for task in site_tasks():
            task.reply(work(task.model, task.site.name == names[-1]))

    form: LoadedExecutor | Mapping[str, TaskFunction] = (
        LoadedExecutor("trial", loop=loop)
        if is_loop
        else {"train": lambda model, site: Update(work(model, site.name == names[-1]))}
    )

    def alive() -> int:
        return sum(one() is not None for one in made)

    with virtual(names, form, threads=threads) as hub:
        terms = CallTerms(round=1, quorum=0)
        unread = hub.call("train", Message({}), names[:-1], terms)
        read = hub.call("train", Message({}), names[-1:], terms)
        threading.Timer(0.3, asked.set).start()  # time enough to make all, if nothing kept them
        assert len(list(read)) == 1
        assert alive() <= threads + 2 + 1  # in hand, in the room, and the one that was read
        most = 0
        for _ in unread:
            most = max(most, alive())
        assert len(made) == 40
        assert most <= threads + 2 + 2  # and those that the test holds
        hub.close_calls("done")


def test_a_loop_does_not_begin_a_task_that_nobody_waits_for() -> None:
    done: list[str] = []
    first, go_on = threading.Event(), threading.Event()

    def loop() -> None:
        for task in site_tasks():
            done.append(task.site.name)
            first.set()
            go_on.wait(20)
            task.reply(task.model)

    with virtual("abc", LoadedExecutor("trial", loop=loop), threads=1) as hub:
        call = ask(hub, quorum=0)
        assert first.wait(20)
        call.cancel("enough")
        go_on.set()
        again = ask(hub)
        assert len(list(again)) == 3
    assert len(done) == 4


def test_a_loop_that_hangs_is_left_behind_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "_END_S", 0.5)
    began, let_go = threading.Event(), threading.Event()

    def loop() -> None:
        for task in site_tasks():
            if task.site.name == "b":
                began.set()
                let_go.wait()
            task.reply(task.model)

    try:
        with virtual("abc", LoadedExecutor("trial", loop=loop), threads=1) as hub:
            call = ask(hub, quorum=0)
            assert began.wait(20)
            call.cancel("enough")
        assert "1 loops have not ended 0.5 s after the job and are left behind: loop-b" in (
            caplog.text
        )
    finally:
        let_go.set()


def test_more_loops_than_a_machine_bears_are_refused(tmp_path: Path) -> None:
    hub = Hub("job-1", 1, [f"site-{number}" for number in range(loops.MOST_LOOPS + 1)])
    executor = LoadedExecutor("trial", loop=lambda: None)
    with pytest.raises(ConfigurationError, match=r"513 sites are too many .* function form"):
        LoopEndpoint(hub, VirtualSites("trial", tmp_path, tmp_path), executor, 2)
