"""Who is attached, who gets which task, and whose word counts."""

import numpy as np
import pytest

from prefect_federated.errors import AttachRefused, JobEnded, StaleController
from prefect_federated.messages import JsonValue, Message, Note, SiteFailure, Update
from prefect_federated.transport.signals import (
    Hello,
    Moment,
    SendAck,
    SendClose,
    SendEnd,
    SendTask,
    SiteNotes,
)
from prefect_federated.transport.waiting import Call
from tests.transport.trial import Peer, Trial


def test_a_site_that_is_not_of_this_job_is_refused_by_name() -> None:
    trial = Trial.of("a", "b")
    with pytest.raises(AttachRefused, match=r"'mallory' is not one of this job's sites \(a, b\)"):
        Peer(trial.hub, "mallory").attach()


@pytest.mark.parametrize(("protocol", "older"), [(1, "site"), (4, "server")])
def test_another_protocol_version_says_which_side_to_upgrade(protocol: int, older: str) -> None:
    hub = Trial.of("a").hub
    with pytest.raises(AttachRefused, match=f"upgrade prefect-federated at the {older}"):
        hub.attach(Hello("a", (), protocol=protocol), print)
    assert hub.attached() == []


def test_a_call_goes_to_the_sites_asked_and_says_what_is_to_be_done() -> None:
    trial = Trial.of("a", "b", "c", epoch=3)
    a, b, c = (trial.peer(name) for name in "abc")
    call = trial.ask("a", "c", model={"w": np.ones(2)}, header={"config": {"lr": 0.1}}, number=7)
    assert not b.inbox
    (task,) = a.got(SendTask)
    assert task.task is c.got(SendTask)[0].task  # encoded once for all
    assert task.message.header == {
        "config": {"lr": 0.1}, "id": call.id, "kind": "train", "job": "job-1", "epoch": 3,
        "round": 7,
    }  # fmt: skip
    assert trial.hub.round == 7
    assert call.reports["a"].bytes_sent == task.task.size_bytes


def test_a_site_named_twice_is_asked_once() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a", "a", quorum=1)
    a.reply(call)
    assert [reply.site for reply in call] == ["a"]
    assert len(a.got(SendTask)) == 1


def test_a_site_that_attaches_late_gets_the_open_task() -> None:
    trial = Trial.of("a", "b")
    call = trial.ask("a", "b")
    assert [task.id for task in trial.peer("b").got(SendTask)] == [call.id]


def test_a_site_that_attaches_again_gets_its_open_task_again() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.detach()
    assert trial.hub.attached() == []
    again = trial.peer("a")
    assert [task.id for task in again.got(SendTask)] == [call.id]
    assert again.attachment is not None
    assert again.attachment.wanted == ()
    assert call.reports["a"].bytes_sent == 2 * call.record.task.encoded.size_bytes


def test_a_site_that_attaches_again_does_not_get_the_task_that_it_holds() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.detach()
    again = Peer(trial.hub, "a").attach(holding=(call.id, "0.9"))
    assert not again.got(SendTask)
    assert again.attachment is not None
    assert again.attachment.wanted == (call.id,)
    again.reply(call)
    assert [type(reply) for reply in call] == [Update]


def test_a_second_attachment_replaces_the_first_and_its_end_changes_nothing() -> None:
    trial = Trial.of("a")
    first = trial.peer("a")
    second = trial.peer("a")
    assert [end.outcome for end in first.got(SendEnd)] == ["replaced"]
    first.detach()
    assert trial.hub.is_attached("a")
    call = trial.ask("a")
    assert second.got(SendTask)
    assert call.id not in {task.id for task in first.got(SendTask)}


def test_an_update_that_came_twice_counts_once() -> None:
    trial = Trial.of("a", "b")
    a = trial.peer("a")
    call = trial.ask("a", "b")
    assert a.reply(call) is None
    assert a.reply(call) == "it was answered already"
    assert [site for site in call.reports if call.reports[site].seconds >= 0] == ["a", "b"]
    trial.clock.now += 601
    assert [type(reply) for reply in call] == [Update, SiteFailure]


def test_a_site_cannot_answer_a_task_of_another_site() -> None:
    trial = Trial.of("a", "b")
    a, b = trial.peer("a"), trial.peer("b")
    call = trial.ask("a")
    assert b.reply(call) == "nobody waits for this task any more"
    a.reply(call)
    assert [reply.site for reply in call] == ["a"]


def test_a_late_update_is_not_even_received() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a", timeout_s=5)
    trial.clock.now += 6
    assert list(call) == [SiteFailure("a", "no answer within 5 s")]
    assert [close.id for close in a.got(SendClose)] == [call.id]
    assert a.reply(call, {"w": np.ones(3_000_000)}) == "it was answered already"


def test_an_answer_to_an_earlier_attempt_of_the_job_is_not_counted() -> None:
    trial = Trial.of("a", epoch=2)
    trial.ask("a")
    a = Peer(trial.hub, "a").attach(epoch=1, holding=("1.1",))
    assert a.attachment is not None
    assert a.attachment.wanted == ()
    assert [task.id for task in a.got(SendTask)] == ["2.1"]


def test_a_site_that_has_seen_a_newer_attempt_is_not_let_in_and_stops_nothing() -> None:
    trial = Trial.of("a", "b", epoch=2)
    b = trial.peer("b")
    call = trial.ask("b")
    with pytest.raises(StaleController, match=r"'a' has seen attempt 3 .* this is attempt 2"):
        Peer(trial.hub, "a").attach(epoch=3)
    b.send(Message({"id": call.id, "weight": 1}, {"w": np.ones(2)}))
    assert [reply.site for reply in call] == ["b"]


def test_an_interrupted_controller_asks_nothing_more() -> None:
    trial = Trial.of("a")
    call = trial.ask("a")
    trial.hub.interrupt("attempt 2 has taken over.")
    with pytest.raises(StaleController, match="attempt 2 has taken over"):
        next(iter(call))
    with pytest.raises(StaleController):
        trial.ask("a")


def test_a_job_that_is_over_tells_its_sites_and_lets_none_in() -> None:
    trial = Trial.of("a", "b")
    a = trial.peer("a")
    trial.hub.end("completed", "all rounds are done")
    trial.hub.end("failed", "said too late")
    assert a.got(SendEnd) == [SendEnd("completed", "all rounds are done")]
    assert trial.hub.is_over
    with pytest.raises(JobEnded, match="all rounds are done"):
        trial.peer("b")


def test_a_site_given_up_fails_its_tasks_until_it_attaches_again() -> None:
    trial = Trial.of("a", "b")
    a = trial.peer("a")
    a.detach()
    call = trial.ask("a")
    trial.hub.give_up("a", "its run is Failed")
    assert list(call) == [SiteFailure("a", "its run is Failed")]
    assert list(trial.ask("a")) == [SiteFailure("a", "its run is Failed")]
    assert trial.hub.reachable(30) == []
    again = trial.peer("a")
    call = trial.ask("a")
    assert again.reply(call) is None


def test_reachable_sites_are_attached_or_were_a_moment_ago() -> None:
    trial = Trial.of("a", "b", "never")
    trial.peer("a")
    trial.peer("b").detach()
    trial.clock.now += 29
    assert trial.hub.reachable(30) == ["a", "b"]
    assert trial.hub.attached() == ["a"]
    trial.clock.now += 2
    assert trial.hub.reachable(30) == ["a"]


def test_a_site_can_do_what_it_said_it_can() -> None:
    trial = Trial.of("a", "b")
    trial.peer("a")
    assert trial.hub.can("a", "train")
    assert not trial.hub.can("a", "sing")
    assert trial.hub.can("b", "train")  # it has not said anything yet


def test_a_failure_is_one_printable_line_however_the_site_words_it() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.fail(call, ValueError("bad\x1b[31m \ud800 rows\nsecret second line"))
    (failure,) = list(call)
    assert failure == SiteFailure("a", "ValueError: bad [31m   rows")
    assert a.got(SendAck) == [SendAck(call.id)]


def test_all_open_tasks_of_a_site_fail_together_when_its_bytes_make_no_sense() -> None:
    trial = Trial.of("a", "b")
    b = trial.peer("b")
    calls = [trial.ask("a", "b"), trial.ask("a")]
    trial.hub.fail("a", None, "protocol error: nonsense")
    b.reply(calls[0])
    assert list(calls[1]) == [SiteFailure("a", "protocol error: nonsense")]
    assert [reply.site for reply in calls[0]] == ["a", "b"]


def test_a_named_site_that_never_came_counts_as_failed_after_a_while() -> None:
    trial = Trial.of("a", "b")
    a = trial.peer("a")
    call = trial.ask("a", "b")
    a.send(Message({"id": call.id, "weight": 1}, {"w": np.ones(2)}))
    replies = iter(call)
    assert next(replies).site == "a"
    trial.clock.now += 31
    late = next(replies)
    assert isinstance(late, SiteFailure)
    assert late.reason == "no connection for 30 s"


def test_sites_that_never_came_are_asked_only_by_name() -> None:
    trial = Trial.of("a", "b")
    trial.peer("a")
    assert trial.hub.reachable(30) == ["a"]
    assert trial.hub.can("b", "train")


def loss_of(call: Call, step: int) -> SiteNotes:
    return SiteNotes(call.id, (Note(5.0, {"loss": 0.5}, step),))


def heard_by(trial: Trial) -> list[tuple[str, int, JsonValue, JsonValue]]:
    """Returns a list that gets site, round, kind and step of what sites say."""
    heard: list[tuple[str, int, JsonValue, JsonValue]] = []

    def hear(moment: Moment) -> None:
        if moment.name == "metrics_logged":
            detail = moment.detail
            heard.append((moment.site, moment.round, detail["kind"], detail["step"]))

    trial.hub.listeners.append(hear)
    return heard


def test_a_site_is_heard_on_the_task_that_it_is_at_and_not_on_one_that_waits() -> None:
    trial = Trial.of("a")
    heard, peer = heard_by(trial), trial.peer("a")
    assert peer.attachment is not None
    first, second = trial.ask("a", number=3), trial.ask("a", number=4, kind="evaluate")
    trial.hub.note(peer.attachment, loss_of(second, 1))
    trial.hub.note(peer.attachment, loss_of(first, 2))
    peer.reply(first)
    trial.hub.note(peer.attachment, loss_of(first, 3))
    trial.hub.note(peer.attachment, loss_of(second, 4))
    assert heard == [("a", 3, "train", 2), ("a", 4, "evaluate", 4)]


def test_a_late_site_is_heard_until_its_update_is_there() -> None:
    trial = Trial.of("a", "b")
    heard, peer = heard_by(trial), trial.peer("a")
    assert peer.attachment is not None
    trial.peer("b")
    call = trial.ask("a", "b", late=0.5, timeout_s=10)
    trial.clock.now += 11
    list(call)
    trial.hub.note(peer.attachment, loss_of(call, 1))
    peer.reply(call)
    trial.hub.note(peer.attachment, loss_of(call, 2))
    assert heard == [("a", 1, "train", 1)]


def test_a_connection_that_was_replaced_is_not_heard() -> None:
    trial = Trial.of("a")
    heard, peer = heard_by(trial), trial.peer("a")
    earlier = peer.attachment
    assert earlier is not None
    call = trial.ask("a")
    peer.attach(holding=(call.id,))
    trial.hub.note(earlier, loss_of(call, 1))
    assert heard == []


def test_what_a_site_had_to_drop_is_said_with_the_first_note_after_it() -> None:
    trial = Trial.of("a")
    moments: list[Moment] = []
    trial.hub.listeners.append(moments.append)
    peer = trial.peer("a")
    assert peer.attachment is not None
    call = trial.ask("a")
    notes = (Note(5.0, {"loss": 0.5}), Note(6.0, progress=(1.0, 2.0, "epoch")))
    trial.hub.note(peer.attachment, SiteNotes(call.id, notes, dropped=40))
    assert [dict(moment.detail) for moment in moments] == [
        {"kind": "train", "metrics": {"loss": 0.5}, "step": None, "time": 5.0, "dropped": 40},
        {"kind": "train", "done": 1.0, "total": 2.0, "unit": "epoch"},
    ]
