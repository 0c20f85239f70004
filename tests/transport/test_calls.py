"""What a call waits for, what it takes, and what it gives to the controller."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from prefect_federated.errors import QuorumNotReached
from prefect_federated.messages import JsonValue, Message, SiteFailure, Tensor, Update
from prefect_federated.transport import room
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.signals import (
    Moment,
    SendAck,
    SendClose,
    SendGo,
    SendNotice,
    SendTask,
)
from prefect_federated.wire import specs_of
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
        eventually(lambda: call.is_awaited, "waiting")
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


W = {"w": np.ones(9)}


def test_a_third_update_waits_until_one_of_two_is_consumed() -> None:
    trial = Trial.of(*"abcd")
    peers = [trial.peer(name) for name in "abcd"]
    call = trial.ask(*"abcd", quorum=1.0)
    offers = [peer.offer(call, W) for peer in peers]
    assert [offer.may_go for offer in offers] == [True, True, False, False]
    assert [offers[0].go(), offers[1].go()] == [None, None]
    replies = iter(call)
    first = next(replies)
    assert not offers[2].may_go  # the first is still in the controller's hands
    del first
    assert isinstance(next(replies), Update)
    assert [offer.may_go for offer in offers] == [True, True, True, False]
    assert offers[2].go() is None
    assert isinstance(next(replies), Update)
    assert offers[3].go() is None
    assert len(list(replies)) == 1


def test_updates_that_are_large_together_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TOGETHER_BYTES", 2 * 9 * 8 - 1)
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", quorum=1.0)
    first, second = a.offer(call, W), b.offer(call, W)
    assert (first.may_go, second.may_go) == (True, False)
    first.go()
    replies = iter(call)
    next(replies)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, replies)
        eventually(lambda: second.may_go, "the second may go")
        second.go()
        assert len(rest.result(10)) == 1


def test_an_update_that_waits_for_room_when_the_call_closes_is_not_wanted() -> None:
    trial = Trial.of(*"abc")
    peers = [trial.peer(name) for name in "abc"]
    call = trial.ask(*"abc")
    offers = [peer.offer(call, W) for peer in peers]
    trial.hub.close_calls("the job's flow ended")
    assert not offers[2].may_go
    assert [close.id for close in peers[2].got(SendClose)] == [call.id]
    assert peers[0].attachment is not None
    assert not peers[0].attachment.incoming  # what was under way is read to nowhere


def test_calls_may_be_read_in_any_order() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    first, second = trial.ask(*"abc", quorum=1.0), trial.ask("c", quorum=1.0)
    for peer in (a, b):
        assert peer.offer(first, W).go() is None
    waiting = c.offer(first, W)
    late = c.offer(second, W)
    assert (waiting.may_go, late.may_go) == (False, False)  # two are here, and not read yet
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(list, second)
        eventually(lambda: late.may_go, "what the controller waits for may go")
        late.go()
        assert [reply.site for reply in read.result(10)] == ["c"]
        others = pool.submit(list, first)
        eventually(lambda: waiting.may_go, "then the other")
        waiting.go()
        assert sorted(reply.site for reply in others.result(10)) == ["a", "b", "c"]


def test_nothing_holds_an_update_that_the_controller_has_done_with() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b")
    alive: list[weakref.ref[Tensor]] = []
    a.offer(call, W).go()
    unread = b.offer(call, W)
    unread.go(8)
    assert b.attachment is not None
    alive.append(weakref.ref(b.attachment.incoming[call.id]._tensors["w"]))
    replies = iter(call)
    reply = next(replies)
    assert isinstance(reply, Update)
    alive.append(weakref.ref(reply.tensors["w"].base or reply.tensors["w"]))
    del reply
    call.cancel()
    replies.close()  # type: ignore[attr-defined]
    gc.collect()
    assert [found() for found in alive] == [None, None]


def test_a_transfer_that_broke_goes_on_where_it_broke() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a", model=W)
    assert a.offer(call, {"w": np.arange(9.0)}).go(40) == "incomplete"
    a.detach()
    again = Peer(trial.hub, "a").attach(holding=(call.id,))
    rest = again.offer(call, {"w": np.arange(9.0)})
    assert [go.offset for go in again.got(SendGo)] == [40]
    assert rest.go() is None
    (update,) = list(call)
    assert isinstance(update, Update)
    assert update.tensors["w"].tolist() == list(range(9))


def test_an_update_that_was_made_anew_after_a_break_is_received_from_its_beginning() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.offer(call, {"w": np.ones(9)}).go(40)
    a.detach()
    again = Peer(trial.hub, "a").attach()  # a new process, which holds nothing
    assert [task.offset for task in again.got(SendTask)] == [0]
    assert again.offer(call, {"w": np.zeros(4)}).go() is None
    (update,) = list(call)
    assert isinstance(update, Update)
    assert update.tensors["w"].tolist() == [0] * 4


def test_a_half_received_update_of_a_site_that_is_gone_gives_way() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask(*"abc")
    broken, second = a.offer(call, W), b.offer(call, W)
    broken.go(8)
    second.go(8)
    third = c.offer(call, W)
    assert not third.may_go
    a.detach()
    assert third.may_go
    again = Peer(trial.hub, "a").attach(holding=(call.id,))
    anew = again.offer(call, W)
    assert not anew.may_go
    second.go()
    third.go()
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(list, call)
        eventually(lambda: anew.may_go, "there is room again")
        assert [go.offset for go in again.got(SendGo)] == [0]
        anew.go()
        assert len(read.result(10)) == 3


def test_a_task_whose_transfer_broke_is_sent_from_where_it_broke() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a", model=W)
    a.detach()
    again = Peer(trial.hub, "a").attach(receiving={call.id: 24, "1.77": 5})
    assert [task.offset for task in again.got(SendTask)] == [24]
    a.detach()
    odd = Peer(trial.hub, "a").attach(receiving={call.id: 10**9})
    assert [task.offset for task in odd.got(SendTask)] == [0]


def test_a_site_gets_one_task_at_a_time() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    first, second = trial.ask("a", model=W), trial.ask("a", model=W)
    assert [task.id for task in a.got(SendTask)] == [first.id]
    a.offer(first, W)
    assert [task.id for task in a.got(SendTask)] == [first.id, second.id]


def test_so_many_sites_are_asked_at_the_same_time() -> None:
    trial = Trial.of(*"abc")
    peers = {name: trial.peer(name) for name in "abc"}
    call = trial.ask(*"abc", quorum=1.0, in_flight=2)

    def asked() -> str:
        return "".join(name for name, peer in peers.items() if peer.got(SendTask))

    assert asked() == "ab"
    peers["b"].reply(call)
    assert asked() == "abc"
    peers["a"].reply(call)
    peers["c"].reply(call)
    assert [reply.site for reply in call] == ["b", "a", "c"]


def test_sites_that_nobody_came_to_ask_say_so() -> None:
    trial = Trial.of("a", "b")
    trial.peer("a")
    trial.peer("b")
    call = trial.ask("a", "b", in_flight=1, timeout_s=5)
    trial.clock.now += 5
    assert list(call) == [
        SiteFailure("a", "no answer within 5 s"),
        SiteFailure("b", "not asked: no answer within 5 s"),
    ]


def test_after_the_quorum_the_others_have_some_seconds_left() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask(*"abc", quorum=2, grace_s=10)
    trial.clock.now += 100
    a.reply(call)
    b.reply(call)
    replies = iter(call)
    assert [next(replies).site, next(replies).site] == ["a", "b"]
    trial.clock.now += 9
    assert call.wait(0) is False
    trial.clock.now += 1
    assert list(replies) == [SiteFailure("c", "no answer within 10 s after the quorum was there")]
    assert c.reply(call) == "it was answered already"


def test_a_late_update_counts_in_the_next_round_with_less_weight() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5, number=3)
    a.reply(first)
    trial.clock.now += 5
    assert [reply.site for reply in first] == ["a", "b"]
    assert not b.got(SendClose)
    second = trial.ask("a", "b", quorum=1.0, late=0.5, number=5)
    assert [task.id for task in b.got(SendTask)] == [first.id]  # it is not asked anew
    b.reply(first, W, weight=8)
    a.reply(second, W, weight=8)
    replies = {reply.site: reply for reply in second}
    assert isinstance(replies["b"], Update)
    assert isinstance(replies["a"], Update)
    assert (replies["b"].weight, replies["b"].staleness) == (2, 2)
    assert (replies["a"].weight, replies["a"].staleness) == (8, 0)
    assert second.reports["b"].staleness == 2


def test_an_update_that_comes_between_two_rounds_waits_for_the_next() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5, number=1)
    half = b.offer(first, W, weight=4)
    half.go(8)
    a.reply(first)
    trial.clock.now += 5
    list(first)
    assert half.go() is None
    second = trial.ask("a", "b", quorum=1.0, late=0.5, number=2)
    a.reply(second)
    assert {reply.site: reply.staleness for reply in second if isinstance(reply, Update)} == {
        "a": 0,
        "b": 1,
    }


def test_a_late_update_of_one_kind_does_not_keep_its_site_from_another() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5)
    a.reply(first)
    trial.clock.now += 5
    list(first)
    other = trial.ask("b", quorum=1, late=0.5, kind="evaluate")
    b.reply(first)
    assert [task.id for task in b.got(SendTask)] == [first.id, other.id]
    assert b.reply(other) is None


def test_a_task_that_was_never_sent_is_no_late_one() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    slow = trial.ask("b", quorum=0, kind="evaluate")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5, number=1)
    a.reply(first)
    trial.clock.now += 5
    replies = list(first)
    assert SiteFailure("b", "it was at another task: no answer within 5 s") in replies
    b.reply(slow)
    second = trial.ask("b", quorum=1, late=0.5, number=2)
    assert [task.id for task in b.got(SendTask)] == [slow.id, second.id]
    assert b.got(SendTask)[-1].message.header["id"] == second.id
    assert b.reply(second) is None


def test_a_call_that_takes_nothing_late_asks_anew() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5)
    a.reply(first)
    trial.clock.now += 5
    list(first)
    second = trial.ask("b", quorum=1, late=0.0, number=2)
    assert [close.id for close in b.got(SendClose)] == [first.id]
    assert [task.id for task in b.got(SendTask)] == [first.id, second.id]
    assert b.reply(first) == "it was answered already"
    assert b.reply(second) is None


def test_an_update_that_is_hopelessly_late_does_not_count() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.1, number=1)
    a.reply(first)
    trial.clock.now += 5
    list(first)
    second = trial.ask("b", quorum=0, late=0.1, number=400)
    b.reply(first)
    assert list(second) == [SiteFailure("b", "its update came 399 rounds late")]


def test_late_updates_that_no_call_takes_do_not_pile_up() -> None:
    names = [f"site-{number}" for number in range(8)]
    trial = Trial.of(*names)
    peers = [trial.peer(name) for name in names]
    large = {"w": np.ones(9_000)}
    for number, peer in enumerate(peers):
        call = trial.ask(peer.name, quorum=0, timeout_s=5, late=0.5, number=number + 1)
        offered = peer.offer(call, large)
        offered.go(100)
        trial.clock.now += 5
        list(call)
        offered.go()
    assert sum(len(peer.got(SendAck)) for peer in peers) == 8
    refused = [refusal.site for refusal in trial.hub.refusals]
    assert refused == names[:6]  # the newest two are kept


def test_two_threads_may_wait_for_different_calls() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    unread, hop = trial.ask("a", "b"), trial.ask("c")
    for peer in (a, b):
        peer.offer(unread, W).go()
    waiting = c.offer(hop, W)
    assert not waiting.may_go
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, hop)
        eventually(lambda: hop.is_awaited, "the first thread waits")
        trial.hub.first_done([unread], timeout_s=0)  # another looks meanwhile
        assert waiting.may_go
        waiting.go()
        assert len(reading.result(10)) == 1


def test_an_update_that_does_not_come_on_gives_way_to_one_that_waits() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask(*"abc", quorum=1.0)
    stuck, slow, waiting = a.offer(call, W), b.offer(call, W), c.offer(call, W)
    for step in range(4):
        call.wait(0)
        trial.clock.now += 6
        slow.go(8)
        call.wait(0)
        assert waiting.may_go == (step >= 2)
    waiting.go()
    slow.go()
    replies = iter(call)
    assert {next(replies).site, next(replies).site} == {"b", "c"}
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, replies)
        eventually(lambda: len(a.got(SendGo)) == 2, "it may begin again")
        stuck.go()
        assert [reply.site for reply in rest.result(10)] == ["a"]


def test_a_site_that_waits_for_room_is_not_to_blame() -> None:
    trial = Trial.of(*"abc", max_failures=1)
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask(*"abc", quorum=0, timeout_s=5)
    for peer in (a, b):
        peer.offer(call, W).go()
    c.offer(call, W)
    trial.clock.now += 5
    assert SiteFailure("c", "its update was not received in time: no answer within 5 s") in list(
        call
    )
    assert trial.hub.reachable(30) == ["a", "b", "c"]


def test_a_site_slower_than_the_grace_is_not_to_blame() -> None:
    trial = Trial.of("a", "b", max_failures=1)
    a, _ = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", quorum=1, grace_s=1)
    a.reply(call)
    trial.clock.now += 1
    list(call)
    assert trial.hub.reachable(30) == ["a", "b"]


def test_a_quorum_that_cannot_be_is_refused_at_once() -> None:
    trial = Trial.of("a", "b")
    trial.peer("a")
    with pytest.raises(QuorumNotReached, match=r"the quorum is 3, and only 2 sites can be asked"):
        trial.ask("a", "b", quorum=3)


def test_a_cancelled_call_is_no_success_even_with_its_quorum() -> None:
    trial = Trial.of("a", "b")
    a, _ = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", quorum=1)
    a.reply(call)
    call.cancel("the flow changed its mind")
    with pytest.raises(QuorumNotReached, match="ended before all had answered: the flow changed"):
        list(call)


@pytest.mark.parametrize(
    ("blob", "model", "says"),
    [(2 << 20, W, "bytes of blobs beside"), (65 << 20, None, "at most 67,108,864 are taken")],
)
def test_an_answer_far_larger_than_what_was_asked_is_not_received(
    blob: int, model: dict[str, Tensor] | None, says: str
) -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.hub.call(
        "train", Message({}, W), ["a"],
        CallTerms(quorum=0, expect=None if model is None else specs_of(model)),
    )  # fmt: skip
    told = a.send(Message({"id": call.id}, W, {"junk": bytes(blob)}))
    assert told is not None
    assert says in told


def test_a_late_task_whose_site_lost_it_is_forgotten() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    first = trial.ask("a", "b", quorum=1, timeout_s=5, late=0.5)
    a.reply(first)
    trial.clock.now += 5
    list(first)
    b.detach()
    again = trial.peer("b")
    second = trial.ask("b", quorum=1, late=0.5, number=2)
    assert [task.id for task in again.got(SendTask)] == [second.id]


def test_a_site_that_fails_again_and_again_is_left_out_and_told_why() -> None:
    trial = Trial.of("a", "b", max_failures=2)
    a, b = trial.peer("a"), trial.peer("b")
    moments: list[Moment] = []
    trial.hub.listeners.append(moments.append)
    for number in (1, 2):
        call = trial.ask("a", "b", number=number)
        a.reply(call)
        b.fail(call, ValueError("no data"))
        list(call)
    assert trial.hub.reachable(30) == ["a"]
    (notice,) = b.got(SendNotice)
    assert notice.reason.startswith(
        "left out after 2 failures in a row, the last: ValueError: no data. It is tried again"
    )
    assert trial.hub.left_out("b") == notice.reason
    assert [(moment.name, moment.site) for moment in moments if moment.site == "b"] == [
        ("site_lost", "b")
    ]


def test_a_site_that_is_left_out_is_taken_back_when_it_answers() -> None:
    trial = Trial.of("a", "b", max_failures=2)
    a, b = trial.peer("a"), trial.peer("b")
    for number in (1, 2, 3, 4):
        assert trial.hub.trials("train") == []
        call = trial.ask("a", *("b" if number < 3 else ""), number=number)
        a.reply(call)
        b.fail(call, ValueError("no data"))
        list(call)
    assert trial.hub.trials("train") == ["b"]
    call = trial.ask("a", trials=["b"], number=5, quorum=1.0)
    b.reply(call)
    assert trial.hub.reachable(30) == ["a", "b"]
    a.reply(call)
    assert sorted(reply.site for reply in call) == ["a", "b"]  # its update counts


def test_nobody_waits_for_a_site_on_trial_and_its_late_answer_brings_it_back() -> None:
    trial = Trial.of("a", "b", max_failures=1)
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b")
    b.fail(call, ValueError("no data"))
    a.reply(call)
    list(call)
    next_one = trial.ask("a")
    a.reply(next_one)
    list(next_one)
    call = trial.ask("a", trials=trial.hub.trials("train"), quorum=1.0)
    assert call.sites == ("a",)
    a.reply(call)
    assert [reply.site for reply in call] == ["a"]
    assert trial.hub.reachable(30) == ["a"]
    assert trial.hub.trials("train") == []  # it still is at the task that it was given
    trial.hub.entering = lambda site, message, asked: pytest.fail("it is not even received")
    assert b.reply(call) == "nobody waits for this task any more"
    assert trial.hub.reachable(30) == ["a", "b"]


def test_ending_a_call_is_no_failure_of_its_sites() -> None:
    trial = Trial.of("a", max_failures=1)
    trial.peer("a")
    trial.ask("a").cancel()
    assert trial.hub.reachable(30) == ["a"]


def test_results_that_do_not_count_are_recorded() -> None:
    trial = Trial.of("a", "b", epoch=2)
    a, b = Peer(trial.hub, "a").attach(epoch=1, holding=("1.7",)), trial.peer("b")
    call = trial.ask("a")
    a.reply(call)
    a.reply(call)
    b.reply(call)
    assert [(refusal.site, refusal.task, refusal.reason) for refusal in trial.hub.refusals] == [
        ("a", "1.7", "it is of attempt 1, this is attempt 2"),
        ("a", call.id, "it was answered already"),
        ("b", call.id, "nobody waits for this task any more"),
    ]


def test_the_first_of_several_calls_that_is_done_is_found() -> None:
    trial = Trial.of(*"abc")
    a, b, c = (trial.peer(name) for name in "abc")
    calls = [trial.ask(name) for name in "abc"]
    assert trial.hub.first_done(calls, timeout_s=0) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(trial.hub.first_done, calls)
        b.offer(calls[1], W).go()
        assert waiting.result(10) == [calls[1]]
    for peer, call in ((a, calls[0]), (c, calls[2])):
        peer.fail(call, ValueError("no"))
    assert trial.hub.first_done(calls) == calls


def test_a_consumer_that_stops_reading_closes_the_call() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", model={"w": np.ones(1000)})
    a.reply(call, {"w": np.ones(1000)})
    for _ in call:
        break
    assert [close.id for close in b.got(SendClose)] == [call.id]
    assert call.wait_site("b").reason == "the call was closed before it answered"
    task = call.record.task
    assert task.encoded.payload_bytes == 0  # the model is let go
    assert not task.message.tensors


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
