"""What a call waits for, what it takes, and what it gives to the controller."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from prefect_federated.errors import QuorumNotReached
from prefect_federated.messages import JsonValue, Message, SiteFailure, Tensor, Update
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import SendAck, SendClose
from prefect_federated.wire import Frame, begin, encode
from tests.agents.network import eventually
from tests.transport.trial import Peer, Trial

MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}


@pytest.mark.parametrize(
    ("quorum", "asked", "needed"),
    [(1.0, 10, 10), (0.7, 10, 7), (0.7, 4, 3), (0.1, 10, 1), (0.01, 3, 1), (3, 10, 3), (0, 5, 0)],
)
def test_a_share_of_the_sites_is_rounded_up(quorum: int | float, asked: int, needed: int) -> None:
    assert CallTerms(quorum=quorum).updates_needed(asked) == needed


def test_replies_come_in_the_order_of_arrival_with_their_sites() -> None:
    trial = Trial.of("a", "b", "c")
    peers = {name: trial.peer(name) for name in "abc"}
    call = trial.ask("a", "b", "c", quorum=1.0)
    for name in "ca":
        peers[name].reply(call, {"w": np.full(2, ord(name))}, weight=ord(name))
    replies = iter(call)
    first, second = next(replies), next(replies)
    peers["b"].reply(call, {"w": np.full(2, ord("b"))}, weight=ord("b"))
    third = next(replies)
    assert next(replies, None) is None
    for reply, name in zip((first, second, third), "cab", strict=True):
        assert isinstance(reply, Update)
        assert (reply.site, reply.weight) == (name, ord(name))
        assert reply.tensors["w"][0] == ord(name)


def test_quorum_not_reached_names_each_missing_site_and_why() -> None:
    trial = Trial.of("a", "b", "c", "d")
    a, b, c = (trial.peer(name) for name in "abc")
    trial.peer("d")
    call = trial.ask("a", "b", "c", "d", quorum=0.5, timeout_s=60, number=4)
    a.reply(call)
    b.fail(call, RuntimeError("out of memory"))
    c.detach()
    trial.clock.now += 30
    replies = iter(call)
    assert [next(replies).site for _ in "abc"] == ["a", "b", "c"]
    trial.clock.now += 30
    with pytest.raises(QuorumNotReached) as caught:
        list(replies)
    assert str(caught.value) == (
        "round 4, train: 1 of 4 sites answered, the quorum is 2. Missing: b: RuntimeError: out of "
        "memory; c: no connection for 30 s; d: no answer within 60 s."
    )


def test_a_reached_quorum_lets_the_job_go_on_without_the_others() -> None:
    trial = Trial.of("a", "b", "c")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", "c", quorum=0.6, timeout_s=60)
    a.reply(call)
    b.reply(call)
    trial.clock.now += 60
    assert [type(reply) for reply in call] == [Update, Update, SiteFailure]


def test_a_lost_site_is_waited_for_only_so_long() -> None:
    trial = Trial.of("a")
    trial.peer("a").detach()
    trial.clock.now += 100
    call = trial.ask("a", lost_after_s=30)  # counted from the call, not from the loss long ago
    trial.clock.now += 29
    again = trial.peer("a")
    again.detach()
    trial.clock.now += 29
    assert again.attachment is not None
    trial.clock.now += 1
    assert list(call) == [SiteFailure("a", "no connection for 30 s")]


def test_the_controller_wakes_when_the_time_of_a_site_is_over() -> None:
    trial = Trial.of("a")
    trial.peer("a")
    call = trial.ask("a", timeout_s=0.05)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, call)
        eventually(lambda: trial.hub.awaited is call, "waiting")
        trial.clock.now += 1
        assert reading.result(10) == [SiteFailure("a", "no answer within 0.05 s")]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"w": MODEL["w"]}, "the update lacks tensor 'b' (1 such)"),
        ({**MODEL, "x": np.zeros(1)}, "the update has the unknown tensor 'x' (1 such)"),
        ({**MODEL, "w": np.zeros((3, 2), np.float32)}, "tensor 'w' is F32 (3, 2), the global"),
        ({**MODEL, "w": np.zeros((2, 3))}, "tensor 'w' is F64 (2, 3), the global model has F32"),
        ({**MODEL, "b": np.array([1, np.nan], np.float32)}, "tensor 'b' holds NaN or infinity"),
        ({**MODEL, "b": np.array([1, np.inf], np.float32)}, "tensor 'b' holds NaN or infinity"),
    ],
)
def test_an_update_that_does_not_fit_is_that_sites_failure_alone(
    tensors: dict[str, Tensor], says: str
) -> None:
    trial = Trial.of("good", "bad")
    good, bad = trial.peer("good"), trial.peer("bad")
    call = trial.ask("good", "bad", model=MODEL, number=3)
    told = bad.reply(call, tensors)
    good.reply(call, MODEL)
    failure, update = list(call)
    assert isinstance(failure, SiteFailure)
    assert says in failure.reason
    assert failure.reason.startswith("round 3, site 'bad': ")
    assert told == failure.reason
    assert isinstance(update, Update)


@pytest.mark.parametrize(
    "header",
    [
        {"weight": 0},
        {"weight": -1.5},
        {"weight": 1e300},
        {"weight": "many"},
        {"weight": True},
        {"metrics": [1]},
        {"metrics": {"loss": "low"}},
        {"metrics": {"loss": None}},
        {"metrics": {"loss": 10**400}},
        {"metrics": {"lo\nss": 1.0}},
        {"metrics": {"l" * 201: 1.0}},
        {"metrics": {f"m{i}": 1.0 for i in range(1001)}},
        {"metrics_weight": -1},
        {"metrics_weight": "x"},
    ],
)
def test_a_weight_or_metric_that_cannot_be_is_that_sites_failure(
    header: dict[str, JsonValue],
) -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    told = a.send(Message({"id": call.id, **header}))
    (failure,) = list(call)
    assert isinstance(failure, SiteFailure)
    assert failure.reason == told
    assert "site 'a' sent" in failure.reason
    assert len(failure.reason) < 500


def test_reports_hold_seconds_bytes_and_metrics() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", model=MODEL)
    trial.clock.now += 2
    a.send(
        Message({"id": call.id, "weight": 5, "metrics": {"loss": 1}, "metrics_weight": 2}, MODEL)
    )
    trial.clock.now += 3
    b.fail(call, KeyError("age"))
    assert len(list(call)) == 2
    report = call.wait_site("a")
    assert (report.seconds, report.metrics, report.metrics_weight) == (2, {"loss": 1.0}, 2)
    assert report.bytes_received > 32
    assert (call.reports["b"].seconds, call.reports["b"].reason) == (5, "KeyError: 'age'")


def _held(trial: Trial, names: str) -> tuple[dict[str, Peer], ThreadPoolExecutor]:
    return {name: trial.peer(name) for name in names}, ThreadPoolExecutor(len(names))


def test_a_third_update_waits_until_one_of_two_is_consumed() -> None:
    trial = Trial.of(*"abcd")
    peers, pool = _held(trial, "abcd")
    call = trial.ask(*"abcd", quorum=1.0)
    with pool:
        sending = [pool.submit(peer.reply, call, {"w": np.ones(9)}) for peer in peers.values()]
        eventually(lambda: trial.hub.held_back == 2, "two updates are held back")
        assert sum(future.done() for future in sending) <= 2
        replies = iter(call)
        first = next(replies)
        assert trial.hub.held_back == 2  # the first is still in the controller's hands
        del first
        assert isinstance(next(replies), Update)
        eventually(lambda: trial.hub.held_back == 1, "the third is let in")
        assert len(list(replies)) == 2
        assert [future.result(10) for future in sending] == [None] * 4


def test_an_update_that_is_held_back_when_the_call_closes_is_not_wanted() -> None:
    trial = Trial.of(*"abc")
    peers, pool = _held(trial, "abc")
    call = trial.ask(*"abc")
    with pool:
        sending = [pool.submit(peer.reply, call) for peer in peers.values()]
        eventually(lambda: trial.hub.held_back == 1, "one update is held back")
        trial.hub.close_calls("the job's flow ended")
        told = sorted(str(future.result(10)) for future in sending)
    assert told == ["None", "None", "nobody waits for this task any more"]


def test_calls_may_be_read_in_any_order() -> None:
    trial = Trial.of(*"abc")
    peers, pool = _held(trial, "abc")
    with pool:
        first, second = trial.ask(*"abc", quorum=1.0), trial.ask("c", quorum=1.0)
        filled = [pool.submit(peers[name].reply, first) for name in "ab"]
        assert [future.result(10) for future in filled] == [None, None]

        def answer_both() -> None:  # one connection: the second waits behind the first
            peers["c"].reply(first)
            peers["c"].reply(second)

        both = pool.submit(answer_both)
        eventually(lambda: trial.hub.held_back == 1, "the third is held back")
        assert [reply.site for reply in second] == ["c"]
        both.result(10)
        assert sorted(reply.site for reply in first) == ["a", "b", "c"]


def test_a_broken_connection_makes_room_for_the_next() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask(*"abc")

    class Broken(Exception):
        pass

    for _ in range(3):
        with pytest.raises(Broken):
            _send_half(a, call.id, Broken())
    assert b.reply(call) is None
    assert c.reply(call) is None


def _send_half(peer: Peer, task: str, error: Exception) -> None:
    head = encode(Frame.UPDATE, Message({"id": task}, {"w": np.ones(4)})).head

    def fill() -> None:
        raise error

    assert peer.attachment is not None
    peer.hub.receive(peer.attachment, begin(head), fill)


def test_a_consumer_that_stops_reading_closes_the_call() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", model={"w": np.ones(1000)})
    a.reply(call, {"w": np.ones(1000)})
    for _ in call:
        break
    assert [close.id for close in b.got(SendClose)] == [call.id]
    assert call.wait_site("b").reason == "the call was closed before it answered"
    assert call.task.size_bytes == len(call.task.head)  # the model is let go
    assert not call.message.tensors


def test_a_call_that_nobody_reads_is_closed_with_the_others() -> None:
    trial = Trial.of("a", "b")
    trial.peer("a")
    call = trial.ask("a", "b")
    watcher = ThreadPoolExecutor(1)
    waiting = watcher.submit(call.wait_site, "a")
    trial.hub.close_calls("the job's flow ended without reading the answer")
    assert waiting.result(10).reason == "the job's flow ended without reading the answer"
    watcher.shutdown()
    assert list(call) == []


def test_replies_can_be_read_once() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.reply(call)
    assert len(list(call)) == 1
    with pytest.raises(RuntimeError, match="read once"):
        iter(call)


def test_a_call_to_nobody_ends_at_once() -> None:
    assert list(Trial.of("a").ask()) == []


def test_observers_hear_of_each_site_when_it_answers() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", quorum=1.0)
    heard: list[str] = []

    def observe(site: str) -> None:
        call.wait_site(site)
        heard.append(site)

    threads = [threading.Thread(target=observe, args=(site,)) for site in "ab"]
    for thread in threads:
        thread.start()
    b.reply(call)
    eventually(lambda: heard == ["b"], "b's observer hears")
    a.reply(call)
    for thread in threads:
        thread.join(10)
    assert heard == ["b", "a"]
    assert [ack.rejected for ack in a.got(SendAck)] == [None]
