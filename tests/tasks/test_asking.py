"""Whom a call asks: draws, sites that are left out, and turns where all are kept at work."""

import pytest

from prefect_federated.errors import QuorumNotReached
from prefect_federated.tasks.asking import Asker
from prefect_federated.tasks.choosing import labelled, sample
from prefect_federated.tasks.parameters import JobParameters
from tests.transport.trial import Peer, Trial


def asker_of(trial: Trial, in_flight: int | None = None) -> Asker:
    job = JobParameters(executor="any.thing", in_flight=in_flight)
    return Asker(job, trial.hub, None, None, None)  # type: ignore[arg-type]  # it asks nobody here


def leave_out(trial: Trial, peer: Peer, others: list[Peer]) -> None:
    """Has a site fail, where one failure is enough, and calls pass until it is due for a trial."""
    call = trial.ask(peer.name, *[other.name for other in others])
    peer.fail(call, OSError("no disk"))
    for other in others:
        other.reply(call)
    list(call)
    if others:
        call = trial.ask(*[other.name for other in others])
        for other in others:
            other.reply(call)
        list(call)


def test_a_draw_is_made_from_the_sites_that_are_not_left_out() -> None:
    trial = Trial.of("a", "b", "c", max_failures=1)
    a, b, c = trial.peer("a"), trial.peer("b"), trial.peer("c")
    leave_out(trial, a, [b, c])
    assert trial.hub.trials("train") == ["a"]
    asker = asker_of(trial)
    for number in range(1, 20):
        drawn, trials = asker.choose("train", sample(1), number)
        assert len(drawn) == 1
        assert drawn[0] in ("b", "c")
        assert trials == ["a"]
    assert asker.choose("train", None, 1) == (["b", "c"], ["a"])
    assert asker.choose("train", ["a"], 1) == (["a"], [])  # who is named is asked
    with pytest.raises(QuorumNotReached, match="none is chosen of those that are connected"):
        asker.choose("train", labelled(region="eu"), 1)


def test_where_all_are_left_out_they_are_asked_as_all_others() -> None:
    trial = Trial.of("a", "b", max_failures=1)
    a, b = trial.peer("a"), trial.peer("b")
    leave_out(trial, a, [])
    leave_out(trial, b, [])
    asker = asker_of(trial)
    assert asker.choose("train", None, 2) == (["a", "b"], [])
    assert asker.choose("train", sample(1), 2)[1] == []
    a.detach()
    b.detach()
    with pytest.raises(
        QuorumNotReached, match=r"not left out. a is left out after 1 failures .*OS"
    ):
        asker.choose("train", None, 2)


def test_sites_that_are_kept_at_work_come_in_turn() -> None:
    trial = Trial.of("a", "b", "c", "d")
    for name in "abc":
        trial.peer(name)
    asker = asker_of(trial, in_flight=2)
    assert asker.idle("train", ()) == ["a", "b"]
    assert asker.idle("train", ["a", "b"]) == []
    assert asker.idle("train", ["b"]) == ["c"]
    assert asker.idle("train", ["c"]) == ["a"]
    trial.peer("d")
    assert asker.idle("train", ["c"]) == ["d"]
    assert asker_of(trial).idle("train", ["b"]) == ["a", "c", "d"]


def test_sites_that_are_left_out_are_given_work_again_once_in_a_while() -> None:
    trial = Trial.of("a", "b", max_failures=1)
    a, b = trial.peer("a"), trial.peer("b")
    leave_out(trial, a, [b])
    asker = asker_of(trial)
    assert asker.idle("train", ()) == ["a", "b"]
    assert asker.idle("train", ["b"]) == []  # it was tried a moment ago
    trial.clock.now += 11
    assert asker.idle("train", ["b"]) == ["a"]
    leave_out(trial, b, [])
    trial.clock.now += 11
    assert asker.idle("train", ()) == ["a"]
    assert asker.idle("train", ()) == ["b"]  # nobody else is left, whether it is due or not
    with pytest.raises(QuorumNotReached, match=r"is connected that is not left out\. a is"):
        asker.idle("train", ())


def test_what_a_look_for_idle_sites_costs_does_not_grow_with_the_sites_at_work() -> None:
    names = [f"s{number}" for number in range(2000)]
    trial = Trial.of(*names)
    for name in names:
        trial.peer(name)
    looked_at: list[str] = []
    asker = asker_of(trial)
    at_work = dict.fromkeys(asker.idle("train", ()))
    assert len(at_work) == 2000
    del at_work["s7"]
    is_attached = trial.hub.is_attached
    trial.hub.is_attached = lambda site: bool(looked_at.append(site)) or is_attached(site)  # type: ignore
    assert asker.idle("train", at_work) == ["s7"]
    assert looked_at == ["s7"]
