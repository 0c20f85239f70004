"""What sites say while they work, from each kind of site to the hub's listeners."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.executors import LoadedExecutor, Site, load_executor, site_tasks
from prefect_federated.frames import Frame, control
from prefect_federated.messages import JsonValue, Message, SiteFailure, Tensors, Update
from prefect_federated.transport import notepad
from prefect_federated.transport.batches import (
    Batch,
    LocalSites,
    ThreadRunner,
    VirtualSites,
    is_said,
    packed,
    run_packed,
    unpacked,
)
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.inproc import InprocEndpoint
from prefect_federated.transport.loops import LoopEndpoint
from prefect_federated.transport.process_runner import ProcessRunner
from prefect_federated.transport.signals import Moment, SiteNotes
from tests.agents.network import Federation, eventually
from tests.transport.tls_trial import MODEL, RunningSite, Wire, ask, halve, hello, raw_stream

EXECUTOR = "tests.transport.speaking_executor"
SAID = ("metrics_logged", "progressed")


def listen(hub: Hub) -> list[Moment]:
    moments: list[Moment] = []
    hub.listeners.append(moments.append)
    return moments


def named(moments: list[Moment], *names: str) -> list[Moment]:
    return [moment for moment in list(moments) if moment.name in names]


def steps(moments: list[Moment], site: str = "site-1") -> list[JsonValue]:
    logged = named(moments, "metrics_logged")
    return [moment.detail["step"] for moment in logged if moment.site == site]


def check_a_round(moments: list[Moment], site: str, round: int) -> None:
    """Compares what the site of `EXECUTOR` said in a round with what came, and when."""
    ours = [moment for moment in moments if (moment.site, moment.round) == (site, round)]
    logged = named(ours, "metrics_logged")
    assert [moment.detail["step"] for moment in logged] == [1, 2, 3]
    assert [moment.detail["metrics"] for moment in logged] == [
        {"loss": 1.0, "round": round}, {"loss": 0.5, "round": round},
        {"loss": "nan", "round": round},
    ]  # fmt: skip
    assert {moment.detail["kind"] for moment in ours} == {"train"}
    assert all(isinstance(moment.detail["time"], float) for moment in logged)
    *_, last = named(ours, "progressed")
    assert dict(last.detail) == {"kind": "train", "done": 3.0, "total": 3.0, "unit": "epoch"}
    assert ours[-1].name == "update_received"


# Simulated


@contextmanager
def simulated(how: str, folder: Path, sites: int = 3) -> Iterator[Hub]:
    hub = Hub("job-1", 1, [f"site-{number}" for number in range(1, sites + 1)])
    virtual = VirtualSites(EXECUTOR, folder / "data", folder / "state")
    if how == "loops":
        functions = load_executor(EXECUTOR).functions

        def loop() -> None:
            for task in site_tasks():
                task.reply(functions["train"](task.model, task.site).tensors)

        with LoopEndpoint(hub, virtual, LoadedExecutor("trial", loop=loop), 2):
            eventually(lambda: len(hub.attached()) == sites, "all attach")
            yield hub
            hub.end("completed", "done")
        return
    runner = ThreadRunner(LocalSites(virtual), 2) if how == "threads" else ProcessRunner(virtual, 2)
    with InprocEndpoint(hub, ("train",), runner):
        yield hub
        hub.end("completed", "done")


def train(hub: Hub, round: int, config: Mapping[str, JsonValue] | None = None) -> None:
    terms = CallTerms(round=round, timeout_s=60)
    message = Message({"config": dict(config or {})}, MODEL)
    replies = list(hub.call("train", message, hub.attached(), terms))
    assert all(isinstance(reply, Update) for reply in replies), replies


@pytest.mark.parametrize("how", ["threads", "processes", "loops"])
def test_what_simulated_sites_say_comes_in_order_and_before_their_updates(
    how: str, tmp_path: Path
) -> None:
    with simulated(how, tmp_path) as hub:
        moments = listen(hub)
        for round in (1, 2):
            train(hub, round)
        for site in hub.sites:
            for round in (1, 2):
                check_a_round(moments, site, round)


@pytest.mark.parametrize("how", ["threads", "processes", "loops"])
def test_more_than_can_be_kept_is_dropped_and_the_server_knows_how_much(
    how: str, tmp_path: Path
) -> None:
    with simulated(how, tmp_path, sites=1) as hub:
        moments = listen(hub)
        train(hub, 1, {"epochs": 30_000})
    logged = named(moments, "metrics_logged")
    dropped = sum(int(str(moment.detail.get("dropped", 0))) for moment in logged)
    assert dropped > 0
    assert 2 * len(logged) + dropped == 2 * 30_000
    assert logged[-1].detail["step"] == 30_000


def test_a_simulated_sites_words_come_while_it_works(tmp_path: Path) -> None:
    hub = Hub("job-1", 1, ["site-1"])
    moments = listen(hub)

    def is_heard(step: int) -> bool:
        return step in steps(moments)

    def train(model: Tensors, site: Site) -> Update:
        for step in (1, 2, 3):
            site.log_metrics({"loss": 0.5}, step)
            eventually(partial(is_heard, step), "it is heard of before the update")
        return Update(model)

    virtual = VirtualSites("trial", tmp_path, tmp_path)
    local = LocalSites(virtual, LoadedExecutor("trial", {"train": train}))
    with InprocEndpoint(hub, ("train",), ThreadRunner(local, 1)):
        (reply,) = list(hub.call("train", Message({}, MODEL), ["site-1"], CallTerms(round=1)))
        hub.end("completed", "done")
    assert isinstance(reply, Update), reply


def test_a_worker_processes_words_come_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site waits for a file that the test writes once it has heard of the first step."""
    (tmp_path / "waiting_executor.py").write_text(
        "import time\n"
        "from prefect_federated import Update, executor\n"
        "@executor\n"
        "def train(model, site):\n"
        "    site.log_metrics({'loss': 0.5}, 1)\n"
        "    until = time.monotonic() + 30\n"
        "    while not (site.state / 'heard').exists():\n"
        "        assert time.monotonic() < until\n"
        "        time.sleep(0.01)\n"
        "    return Update(model)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hub = Hub("job-1", 1, ["site-1"])
    moments = listen(hub)
    virtual = VirtualSites("waiting_executor", tmp_path / "data", tmp_path / "state")
    with InprocEndpoint(hub, ("train",), ProcessRunner(virtual, 1)):
        call = hub.call("train", Message({}, MODEL), ["site-1"], CallTerms(round=1))
        eventually(lambda: steps(moments) == [1], "the server hears of it")
        (tmp_path / "state" / "site-1" / "heard").touch()
        (reply,) = list(call)
        hub.end("completed", "done")
    assert isinstance(reply, Update), reply


def test_on_another_machine_a_batch_brings_what_its_sites_said_before_each_answer(
    tmp_path: Path,
) -> None:
    sites = VirtualSites(EXECUTOR, tmp_path / "data", tmp_path / "state")
    task = Message({"id": "1.1", "kind": "train", "round": 2}, MODEL)
    batch = Batch(task, ("site-1", "site-2"))
    content = run_packed(packed([Message({"sites": sites.as_json()}), batch.message()]))
    heard: list[tuple[str, SiteNotes]] = []
    order = [
        is_said(message, lambda site, notes: heard.append((site, notes)))
        for message in unpacked(content)
    ]
    assert order == [True, False, True, False]
    assert [site for site, _ in heard] == ["site-1", "site-2"]
    for _, notes in heard:
        assert notes.id == "1.1"
        assert [note.step for note in notes.notes if note.progress is None] == [1, 2, 3]


# Over TLS


def speak(model: Tensors, site: Site) -> Update:
    return load_executor(EXECUTOR).function("train")(model, site)


def test_what_a_site_says_travels_and_comes_before_its_update(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1", "site-2")
    moments = listen(hub)
    for name in ("site-1", "site-2"):
        start_site(name, port, train=speak)
    replies = list(ask(hub, "site-1", "site-2"))
    assert [type(reply) for reply in replies] == [Update, Update]
    for name in ("site-1", "site-2"):
        check_a_round(moments, name, 1)


def test_a_large_updates_notes_come_before_it_too(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)
    start_site("site-1", port, train=speak)
    (reply,) = list(ask(hub, "site-1", model={"w": np.zeros(1_000_000)}))
    assert isinstance(reply, Update)
    check_a_round(moments, "site-1", 1)


def test_a_failed_tasks_last_words_are_heard(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)

    def diverge(model: Tensors, site: Site) -> Update:
        site.log_metrics({"loss": float("inf")}, 7)
        raise ValueError("it diverges")

    start_site("site-1", port, train=diverge)
    (reply,) = list(ask(hub, "site-1"))
    assert isinstance(reply, SiteFailure)
    (logged,) = named(moments, "metrics_logged")
    assert logged.detail["metrics"] == {"loss": "inf"}


def test_a_sites_words_come_while_it_works_from_any_thread(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)

    def train(model: Tensors, site: Site) -> Update:
        threads = [
            threading.Thread(target=site.log_metrics, args=({"loss": 0.5}, step))
            for step in range(20)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: sorted(map(str, steps(moments))) == sorted(map(str, range(20))), "all")
        return halve(model, site)

    start_site("site-1", port, train=train)
    (reply,) = list(ask(hub, "site-1"))
    assert isinstance(reply, Update), reply


def cut_off(wire: Wire) -> None:
    """Cuts a site off; returns when it has noticed, and dials again, and has to wait."""
    wire.may_pass.clear()
    wire.cut()
    eventually(lambda: wire.dials == 2, "the site dials again")


def test_what_is_said_without_a_connection_is_kept_and_told_when_it_is_back(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)
    began, is_lost, has_spoken, go_on = (threading.Event() for _ in range(4))

    def train(model: Tensors, site: Site) -> Update:
        began.set()
        assert is_lost.wait(30)
        for step in range(500):
            site.log_metrics({"loss": 0.5}, step)
        has_spoken.set()
        assert go_on.wait(30)
        site.log_metrics({"loss": 0.5}, 500)
        return halve(model, site)

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    call = ask(hub, "site-1")
    assert began.wait(30)
    cut_off(wire)
    is_lost.set()
    assert has_spoken.wait(30)
    wire.may_pass.set()
    eventually(lambda: len(steps(moments)) == 500, "what was kept is told")
    go_on.set()
    (reply,) = list(call)
    assert isinstance(reply, Update)
    assert steps(moments) == list(range(501))


def test_the_last_words_before_an_update_wait_with_it_for_a_connection(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)
    began, is_lost, is_done = threading.Event(), threading.Event(), threading.Event()

    def train(model: Tensors, site: Site) -> Update:
        began.set()
        assert is_lost.wait(30)
        site.log_metrics({"loss": 0.5}, 1)
        is_done.set()
        return halve(model, site)

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    call = ask(hub, "site-1")
    assert began.wait(30)
    cut_off(wire)
    is_lost.set()
    assert is_done.wait(30)
    wire.may_pass.set()
    (reply,) = list(call)
    assert isinstance(reply, Update)
    names = [moment.name for moment in moments if moment.name in (*SAID, "update_received")]
    assert names == ["metrics_logged", "update_received"]


def test_a_task_that_nobody_waits_for_any_more_is_not_spoken_of(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)
    began, is_cancelled = threading.Event(), threading.Event()
    sites: list[Site] = []

    def train(model: Tensors, site: Site) -> Update:
        sites.append(site)
        if len(sites) == 1:
            began.set()
            assert is_cancelled.wait(30)
            site.log_metrics({"loss": 0.5}, 1)
        else:
            sites[0].log_metrics({"loss": 0.5}, 2)  # a thread of an earlier task, say
            site.log_metrics({"loss": 0.5}, 3)
        return halve(model, site)

    start_site("site-1", port, train=train)
    call = ask(hub, "site-1")
    assert began.wait(30)
    call.cancel("enough")
    is_cancelled.set()
    (reply,) = list(ask(hub, "site-1"))
    assert isinstance(reply, Update)
    assert steps(moments) == [3]


def test_a_listener_that_raises_costs_no_round(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint("site-1")

    def broken(moment: Moment) -> None:
        raise ZeroDivisionError("in a listener")

    hub.listeners.append(broken)
    moments = listen(hub)
    start_site("site-1", port, train=speak)
    (reply,) = list(ask(hub, "site-1"))
    assert isinstance(reply, Update), reply
    check_a_round(moments, "site-1", 1)
    assert "a listener to metrics_logged failed; the job goes on" in caplog.text


def test_a_site_that_logs_without_end_is_thinned_and_stays_in_the_job(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)

    def train(model: Tensors, site: Site) -> Update:
        for step in range(15_000):
            site.log_metrics({"loss": 0.5, "norm": 1.0}, step)
        return halve(model, site)

    start_site("site-1", port, train=train)
    for _ in range(4):
        (reply,) = list(ask(hub, "site-1"))
        assert isinstance(reply, Update), reply
    assert named(moments, "site_lost") == []
    logged = named(moments, "metrics_logged")
    assert sum(int(str(moment.detail.get("dropped", 0))) for moment in logged) > 10_000


def test_ever_new_names_are_left_out_at_the_site_which_stays_in_the_job(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    moments = listen(hub)

    def train(model: Tensors, site: Site) -> Update:
        for number in range(1_500):
            site.log_metrics({f"{site.round} {number}": 0.5})
        return halve(model, site)

    start_site("site-1", port, train=train)
    for _ in range(2):
        (reply,) = list(ask(hub, "site-1"))
        assert isinstance(reply, Update), reply
    assert named(moments, "site_lost") == []
    assert len(named(moments, "metrics_logged")) <= 2_000


# Sites that are not ours


def note(task: str, **metrics: JsonValue) -> bytes:
    return control(Frame.NOTES, {"id": task, "notes": [{"time": 1.0, "metrics": metrics}]})


def test_a_site_speaks_only_of_tasks_that_it_has(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint()
    moments = listen(hub)
    with (
        raw_stream(kits.kit("site-1", port)) as first,
        raw_stream(kits.kit("site-2", port)) as second,
    ):
        first.send(hello())
        second.send(hello())
        call = ask(hub, "site-1")
        task = first.task()
        second.send(note(task, stolen=1))
        first.send(note("1.99", unknown=1), note("", unknown=1), note(task, loss=0.25))
        eventually(lambda: named(moments, "metrics_logged"), "the first site is heard")
        theirs = ask(hub, "site-2")  # its notes come in order, so it was not heard before
        second.send(note(second.task(), own=2))
        eventually(lambda: len(named(moments, "metrics_logged")) == 2, "the second one too")
        heard = [(moment.site, moment.detail["metrics"]) for moment in named(moments, *SAID)]
        assert heard == [("site-1", {"loss": 0.25}), ("site-2", {"own": 2.0})]
        for open_call in (call, theirs):
            open_call.cancel("enough")
        first.send(note(task, late=1))
        last = ask(hub, "site-1")
        asked = last.id.encode()
        eventually(lambda: any(asked in frame for frame in list(first.frames)), "asked again")
        first.send(note(last.id, loss=0.125))
        eventually(lambda: len(named(moments, "metrics_logged")) == 3, "it is heard again")
        assert named(moments, *SAID)[-1].detail["metrics"] == {"loss": 0.125}


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([note("1.1", loss="high")], "the metric 'loss' as 'high'"),
        ([control(Frame.NOTES, {"id": "1.1"})], "must have `id` and `notes`"),
        ([control(Frame.NOTES)], "must have `id` and `notes`"),
        ([note("1.1", loss=1)] * 20_000, "a flood of notes came"),
        ([note("1.1", **{f"m{i}": 1}) for i in range(1_001)], "more than 1,000 different metrics"),
    ],
)
def test_a_site_that_talks_nonsense_or_without_end_fails_alone(
    frames: list[bytes],
    says: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    hub, port = open_endpoint()
    start_site("site-2", port)
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(hello())
        call = ask(hub, "site-1", "site-2")
        stream.task()
        stream.send(*frames)
        outcome, reason = stream.end()
    assert outcome == "protocol"
    assert says in reason
    replies = {reply.site: reply for reply in call}
    assert isinstance(replies["site-1"], SiteFailure)
    assert "protocol error" in replies["site-1"].reason
    assert isinstance(replies["site-2"], Update)


def test_notes_before_a_hello_are_refused(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    _, port = open_endpoint()
    with raw_stream(kits.kit("site-1", port)) as stream:
        stream.send(note("1.1", loss=1))
        assert stream.end() == ("protocol", "a stream must begin with a hello.")


def test_where_nobody_speaks_there_is_no_thread_for_it(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    start_site("site-1", port)
    assert isinstance(next(iter(ask(hub, "site-1"))), Update)
    assert "notes" not in {thread.name for thread in threading.enumerate()}
    assert notepad.EVERY_S == 0.25
