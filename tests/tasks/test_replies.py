"""Futures of calls: their results, errors and cancelling, on sites that the test speaks for."""

import pytest

from prefect_federated.errors import QuorumNotReached
from prefect_federated.tasks.replies import Replies, ReplyFuture
from prefect_federated.transport.waiting import Call
from tests.transport.trial import Trial


def future_of(trial: Trial, call: Call) -> ReplyFuture:
    return ReplyFuture(trial.hub, Replies(call, [], None))


@pytest.mark.parametrize("quorum", [0, 1, 2])
def test_a_cancelled_call_has_no_result_whoever_had_answered(quorum: int) -> None:
    trial = Trial.of("a", "b")
    a, _ = trial.peer("a"), trial.peer("b")
    call = trial.ask("a", "b", quorum=quorum)
    a.reply(call)
    future = future_of(trial, call)
    future.cancel()
    with pytest.raises(QuorumNotReached, match="cancelled") as first:
        future.result()
    with pytest.raises(QuorumNotReached, match="cancelled") as again:
        future.result()
    assert first.value is again.value


def test_a_result_that_was_there_stays_though_the_call_is_cancelled_then() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a")
    a.reply(call)
    future = future_of(trial, call)
    (update,) = future.result()
    future.cancel()
    assert future.result() == [update]


def test_an_error_is_raised_again_when_the_result_is_asked_for_again() -> None:
    trial = Trial.of("a")
    a = trial.peer("a")
    call = trial.ask("a", quorum=1)
    a.fail(call, OSError("no disk"))
    future = future_of(trial, call)
    for _ in range(2):
        with pytest.raises(QuorumNotReached, match="no disk"):
            future.result()
