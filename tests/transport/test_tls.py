"""The TLS driver over real connections: attaching, breaking, resuming."""

import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prefect_federated import wire
from prefect_federated.agents.client_hello import server_name
from prefect_federated.errors import (
    AttachRefused,
    ConfigurationError,
    ConnectionFailed,
    JobEnded,
    OutOfSpace,
)
from prefect_federated.executors import Site
from prefect_federated.messages import Message, SiteFailure, Tensor, Tensors, Update
from prefect_federated.transport import connection
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.tls_client import TlsLink
from prefect_federated.transport.tls_server import TlsEndpoint
from prefect_federated.wire import Incoming
from tests.agents.network import Federation, accepting, eventually
from tests.transport.tls_trial import JOB, MODEL, RunningSite, Wire, ask, halve


def test_a_task_and_its_update_travel(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    hub, port = open_endpoint("site-1")
    seen: list[tuple[Site, Tensors]] = []

    def train(model: Tensors, site: Site) -> Update:
        seen.append((site, model))
        return Update({"w": model["w"] * 2}, 304, {"loss": 0.25}, {"extra": b"\x00bytes"}, 61)

    site = start_site("site-1", port, train=train)
    (update,) = list(ask(hub, "site-1"))
    assert isinstance(update, Update)
    np.testing.assert_array_equal(update.tensors["w"], MODEL["w"] * 2)
    assert (update.site, update.weight, update.metrics_weight) == ("site-1", 304, 61)
    assert (update.metrics, update.blobs) == ({"loss": 0.25}, {"extra": b"\x00bytes"})
    ((at, model),) = seen
    assert (at.name, at.round, at.config) == ("site-1", 1, {"lr": 0.1})
    assert not model["w"].flags.writeable
    assert hub.can("site-1", "train")
    hub.end("completed", "all rounds are done")
    end = site.join()
    assert isinstance(end, JobEnded)
    assert (end.outcome, str(end)) == ("completed", "the job is completed: all rounds are done")


def test_twenty_megabytes_of_random_tensors_arrive_exactly_on_both_sides(
    open_endpoint: Callable[..., tuple[Hub, int]], start_site: Callable[..., RunningSite]
) -> None:
    random = np.random.default_rng(2)
    model: dict[str, Tensor] = {
        "big": random.normal(size=(1000, 4001)).astype(np.float32),
        "scalar": np.asarray(random.normal()),
        "empty": np.zeros((0, 3), np.int64),
        "odd": np.frombuffer(random.bytes(4_000_003), "u1"),
    }
    hub, port = open_endpoint()

    def train(received: Tensors, site: Site) -> Update:
        for name, array in model.items():
            np.testing.assert_array_equal(received[name], array)
        return Update(
            {name: array[::-1] if array.ndim else array for name, array in received.items()}
        )

    for name in ("site-1", "site-2"):
        start_site(name, port, train=train)
    call = ask(hub, "site-1", "site-2", model=model)
    for update in call:
        assert isinstance(update, Update), update
        for name, array in model.items():
            expected = array[::-1] if array.ndim else array
            np.testing.assert_array_equal(update.tensors[name], expected)
    assert call.reports["site-2"].bytes_received > 20_000_000
    assert call.reports["site-2"].bytes_sent > 20_000_000


def test_a_connection_cut_while_a_site_trains_costs_no_training(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    trained, go_on = [], threading.Event()

    def train(model: Tensors, site: Site) -> Update:
        trained.append(site.round)
        assert go_on.wait(30)
        return halve(model, site)

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    call = ask(hub, "site-1")
    eventually(lambda: trained, "training")
    wire.cut()
    eventually(lambda: not hub.is_attached("site-1"), "the server notices")
    eventually(lambda: hub.is_attached("site-1"), "the site attaches again")
    go_on.set()
    (update,) = list(call)
    assert isinstance(update, Update)
    assert trained == [1]
    assert len(list(ask(hub, "site-1"))) == 1
    hub.end("completed", "done")


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_that_is_cut_goes_on_where_it_broke(
    way: str,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    model: dict[str, Tensor] = {"w": np.random.default_rng(4).normal(size=1_000_000)}
    trained: list[int] = []

    def train(received: Tensors, site: Site) -> Update:
        trained.append(site.round)
        return Update({"w": received["w"] * 2})

    wire = open_wire(port)
    start_site("site-1", wire.own_port, train=train)
    eventually(lambda: hub.is_attached("site-1"), "site-1 attaches")
    wire.cut_after[way] = 4_000_000
    replies = list(ask(hub, "site-1", model=model))
    assert wire.cuts == 1
    assert 8_000_000 < wire.carried[way] < 10_000_000  # 12 MB if all were sent again
    assert trained == [1]
    (update,) = replies
    assert isinstance(update, Update)
    np.testing.assert_array_equal(update.tensors["w"], model["w"] * 2)
    hub.end("completed", "done")


def test_a_newer_attempt_is_obeyed_and_an_older_one_refused(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, first_port = open_endpoint("site-1", epoch=1)
    second, second_port = open_endpoint("site-1", epoch=2)
    trained, go_on = [], threading.Event()

    def train(model: Tensors, site: Site) -> Update:
        trained.append(float(model["w"][0, 0]))
        assert go_on.wait(30)
        return Update(model)

    wire = open_wire(first_port)
    start_site("site-1", wire.own_port, train=train)
    old_call = ask(first, "site-1", model={"w": MODEL["w"] + 100})
    eventually(lambda: trained, "training for the first attempt")
    wire.port = second_port
    wire.cut()
    new_call = ask(second, "site-1", model={"w": MODEL["w"] + 200})
    go_on.set()
    (update,) = list(new_call)  # not the first attempt's, which the site dropped
    assert isinstance(update, Update)
    assert update.tensors["w"][0, 0] == 200
    assert trained == [100, 200]
    assert old_call.reports["site-1"].bytes_received == 0

    wire.port = first_port
    wire.cut()
    refusal = "'site-1' has seen attempt 2 of job job-1; this is attempt 1."
    eventually(lambda: refusal in caplog.text, "the first attempt's endpoint refuses the site")
    assert not first.is_attached("site-1")
    assert trained == [100, 200]

    wire.port = second_port
    wire.cut()
    assert len(list(ask(second, "site-1"))) == 1
    second.end("completed", "done")


def test_an_executor_that_raises_gives_its_type_and_first_line_and_no_traceback(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint()

    def train(model: Tensors, site: Site) -> Update:
        raise ValueError("age is missing\nin the row of patient 4711")

    start_site("site-1", port, train=train)
    start_site("site-2", port)
    replies = {reply.site: reply for reply in ask(hub, "site-1", "site-2")}
    assert replies["site-1"] == SiteFailure("site-1", "ValueError: age is missing")
    assert isinstance(replies["site-2"], Update)
    assert "in the row of patient 4711" in caplog.text  # the whole of it stays at the site


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Update(MODEL, metrics={"loss": float("nan")}), "the metric 'loss' is nan"),
        (Update(MODEL, metrics={"loss": None}), "the metric 'loss' is a NoneType"),  # type: ignore[dict-item]
        (Update(MODEL, weight=float("inf")), "the weight is inf"),
        (Update({"w": [1.0]}), "tensor 'w' is a list; give a NumPy array"),  # type: ignore[dict-item]
        (Update({"w": np.array(["a"])}), "dtype <U1, which does not travel"),
        (Update(MODEL, weight=0), "sent the weight 0.0; it must be above 0"),
        (Update({"w": np.full((2, 3), np.nan, np.float32)}), "holds NaN or infinity"),
        (None, "returned NoneType for the site task 'train'; return an Update"),
    ],
)
def test_an_answer_that_cannot_be_is_a_failure_and_the_site_goes_on(
    answer: Update | None,
    says: str,
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
) -> None:
    hub, port = open_endpoint("site-1")
    answers = iter([answer, Update(MODEL)])
    start_site("site-1", port, train=lambda model, site: next(answers))
    (failure,) = list(ask(hub, "site-1"))
    assert isinstance(failure, SiteFailure)
    assert says in failure.reason
    assert [type(reply) for reply in ask(hub, "site-1")] == [Update]


@pytest.mark.parametrize(("name", "role"), [("alice", "project_admin"), ("server-1", "server")])
def test_only_a_sites_certificate_attaches(
    name: str,
    role: str,
    kits: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
) -> None:
    hub, port = open_endpoint("site-1", name)
    with TlsLink(kits.kit(name, port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match=f"'{name}' is a {role}; only sites may attach"):
            link.receive()
    assert hub.attached() == []


def test_a_certificate_of_no_known_role_does_not_attach(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]], tmp_path: Path
) -> None:
    hub, port = open_endpoint("site-1")
    kit = kits.reissued(kits.kit("site-1", port), tmp_path, role="janitor")
    with TlsLink(kit, JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match="janitor"):
            link.receive()
    assert hub.attached() == []


def test_a_site_of_another_job_does_not_attach(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-2")
    with TlsLink(kits.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match=r"'site-1' is not one of this job's sites"):
            link.receive()
    with TlsLink(kits.kit("site-2", port), "job-2") as link:
        link.attach(("train",))
        with pytest.raises(AttachRefused, match="this is job job-1, site 'site-2' wants 'job-2'"):
            link.receive()
    assert hub.attached() == []


def test_a_job_that_is_over_says_so_to_a_site_that_comes_late(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    hub.end("completed", "all rounds are done")
    with TlsLink(kits.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        with pytest.raises(JobEnded, match="all rounds are done"):
            link.receive()


def test_a_site_does_not_talk_to_a_foreign_server_and_says_why(
    strangers: Federation,
    open_endpoint: Callable[..., tuple[Hub, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, port = open_endpoint("site-1")
    with TlsLink(strangers.kit("site-1", port), JOB) as link:
        link.attach(("train",))
        eventually(lambda: "cannot be reached" in caplog.text, "the site says so")
    assert f"job job-1 at 127.0.0.1:{port} cannot be reached (the server shows a " in caplog.text
    assert hub.attached() == []


def test_a_kit_that_cannot_be_read_any_more_ends_the_link(kits: Federation, tmp_path: Path) -> None:
    kit = replace(kits.kit("site-1", 1), private_key=tmp_path / "gone.key")
    with TlsLink(kit, JOB) as link:
        link.attach(("train",))
        with pytest.raises(ConnectionFailed, match="key or CA cannot be loaded"):
            link.receive()


def test_an_address_that_is_not_this_machines_names_the_setting(kits: Federation) -> None:
    with pytest.raises(ConfigurationError, match="PREFECT_FEDERATED_ENDPOINT_HOST"):
        TlsEndpoint(Hub(JOB, 1, ()), kits.kit("server-1"), host="203.0.113.7")


def test_a_half_open_connection_is_noticed_within_fifteen_seconds() -> None:
    noticed_s = connection.SILENCE_S + connection.HEARTBEAT_S  # it looks at least at each beat
    assert noticed_s <= 15
    assert connection.SILENCE_S >= 3 * connection.HEARTBEAT_S


def test_a_half_open_connection_is_noticed_at_both_ends_and_another_takes_its_place(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connection, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(connection, "SILENCE_S", 1.0)
    hub, port = open_endpoint("site-1")
    wire = open_wire(port)
    start_site("site-1", wire.own_port)
    assert len(list(ask(hub, "site-1"))) == 1
    with caplog.at_level("INFO"):
        wire.freeze()
        eventually(lambda: not hub.is_attached("site-1"), "the server notices")
        eventually(lambda: "cannot be reached (silent for 1 s)" in caplog.text, "the site notices")
    assert "site site-1: disconnected (silent for 1 s)" in caplog.text
    wire.may_pass.set()
    assert isinstance(next(iter(ask(hub, "site-1"))), Update)


def test_heartbeats_keep_a_connection_that_carries_nothing_else(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(connection, "SILENCE_S", 0.5)
    hub, port = open_endpoint("site-1")
    wire = open_wire(port)
    start_site("site-1", wire.own_port)
    eventually(lambda: hub.is_attached("site-1"), "the site attaches")
    began, before = time.monotonic(), dict(wire.carried)
    eventually(lambda: time.monotonic() - began > 1.0, "more than the silence that is suffered")
    assert hub.is_attached("site-1")
    assert all(wire.carried[way] > before[way] for way in ("up", "down"))


def test_the_jobs_end_overtakes_a_large_model_on_a_slow_line(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    wire = open_wire(port)
    site = start_site("site-1", wire.own_port)
    eventually(lambda: hub.is_attached("site-1"), "the site attaches")
    wire.bytes_per_s = 4e6
    ask(hub, "site-1", model={"w": np.zeros(50_000_000, np.uint8)})
    eventually(lambda: wire.carried["down"] > 1_000_000, "the model is on its way")
    hub.end("cancelled", "a person said so")
    assert isinstance(site.join(), JobEnded)
    assert wire.carried["down"] < 25_000_000


def test_a_model_that_nobody_waits_for_any_more_is_not_sent_to_its_end(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    open_wire: Callable[[int], Wire],
) -> None:
    hub, port = open_endpoint("site-1")
    wire = open_wire(port)
    trained: list[int] = []

    def train(model: Tensors, site: Site) -> Update:
        trained.append(model["w"].size)
        return Update(model)

    start_site("site-1", wire.own_port, train=train)
    eventually(lambda: hub.is_attached("site-1"), "the site attaches")
    wire.bytes_per_s = 4e6
    call = ask(hub, "site-1", model={"w": np.zeros(50_000_000, np.uint8)})
    eventually(lambda: wire.carried["down"] > 1_000_000, "the model is on its way")
    call.cancel("another is better")
    wire.bytes_per_s = None
    assert len(list(ask(hub, "site-1"))) == 1
    assert trained == [6]
    assert wire.carried["down"] < 25_000_000


def test_models_of_tasks_that_were_closed_do_not_pile_up_while_an_executor_hangs(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub, port = open_endpoint("site-1")
    models: list[weakref.ref[Tensor]] = []
    go_on = threading.Event()
    rounds: list[float] = []
    message = Incoming.message

    def noted(self: Incoming) -> Message:
        whole = message(self)
        models.extend(weakref.ref(array) for array in whole.tensors.values() if array.size == 7)
        return whole

    def train(model: Tensors, site: Site) -> Update:
        rounds.append(float(model["w"][0]))
        assert go_on.wait(60)
        return Update({"w": np.zeros(1)})

    def are_there(count: int) -> bool:
        return len(models) == count

    monkeypatch.setattr(Incoming, "message", noted)
    start_site("site-1", port, train=train)
    for number in range(6):
        call = ask(hub, "site-1", model={"w": np.full(7, float(number))})
        eventually(partial(are_there, number + 1), "the model is there")
        if number < 5:
            call.cancel("too late")
    assert sum(model() is not None for model in models) <= 2  # at work on one, and the newest
    go_on.set()
    eventually(lambda: len(rounds) == 2, "the newest comes next")
    assert rounds == [0.0, 5.0]


def test_a_model_for_which_a_site_has_no_room_fails_there_and_the_site_goes_on(
    open_endpoint: Callable[..., tuple[Hub, int]],
    start_site: Callable[..., RunningSite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(*_: object) -> None:
        raise OutOfSpace("no room for a tensor")

    hub, port = open_endpoint("site-1")
    start_site("site-1", port)
    eventually(lambda: hub.is_attached("site-1"), "the site attaches")
    with monkeypatch.context() as patch:
        patch.setattr(wire, "empty", no_room)
        (failure,) = list(ask(hub, "site-1"))
    assert failure == SiteFailure("site-1", "OutOfSpace: no room for a tensor")
    assert isinstance(next(iter(ask(hub, "site-1"))), Update)


def test_each_job_is_asked_for_by_its_own_name(kits: Federation) -> None:
    asked: list[str | None] = []

    def look(client: socket.socket) -> None:
        asked.append(server_name(client.recv(16_000)))
        client.close()

    with accepting(look) as port:
        for job in ("job-1", "job-2"):
            with TlsLink(kits.kit("site-1", port), job) as link:
                link.attach(("train",))
                eventually(lambda name=job: f"{name}.jobs.trial" in asked, "the link dials")  # type: ignore[misc]


def test_two_jobs_do_not_mix(kits: Federation) -> None:
    hubs = [Hub(job, 1, ("site-1",)) for job in ("job-1", "job-2")]
    with (
        TlsEndpoint(hubs[0], kits.kit("server-1")) as first,
        TlsEndpoint(hubs[1], kits.kit("server-1")) as second,
    ):
        ports = [int(end.address.rpartition(":")[2]) for end in (first, second)]
        with (
            TlsLink(kits.kit("site-1", ports[0]), "job-1", labels={"region": "north"}) as one,
            TlsLink(kits.kit("site-1", ports[1]), "job-2") as other,
        ):
            one.attach(("train",))
            other.attach(("evaluate",))
            eventually(lambda: all(hub.is_attached("site-1") for hub in hubs), "both attach")
            assert (hubs[0].can("site-1", "train"), hubs[1].can("site-1", "train")) == (True, False)
            assert hubs[0].labels("site-1") == {"region": "north"}
            hubs[0].end("completed", "done")
            with pytest.raises(JobEnded, match="done"):
                one.receive()
            assert hubs[1].is_attached("site-1")
            hubs[1].end("completed", "done")


def test_the_next_server_of_the_kit_is_dialled_when_one_is_not_there(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with TlsLink(kits.kit("site-1", 1, port), JOB) as link:
        link.attach(("train",))
        eventually(lambda: hub.is_attached("site-1"), "the site attaches at the second server")


def test_a_site_that_attaches_twice_has_one_connection(
    kits: Federation, open_endpoint: Callable[..., tuple[Hub, int]]
) -> None:
    hub, port = open_endpoint("site-1")
    with TlsLink(kits.kit("site-1", port), JOB) as old:
        old.attach(("train",))
        eventually(lambda: hub.can("site-1", "train") and hub.attached(), "the site attaches")
        with TlsLink(kits.kit("site-1", port), JOB) as new:
            new.attach(("evaluate",))
            eventually(lambda: hub.can("site-1", "evaluate"), "the second takes the place")
            assert hub.attached() == ["site-1"]
        eventually(lambda: hub.can("site-1", "train"), "the first comes back when it is gone")
