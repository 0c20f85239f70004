"""The state machines under simulated time, and whether the simulation would notice a defect."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.protocol import run_seed
from prefect_federated.messages import Reply
from prefect_federated.transport.calls import CallRecord
from prefect_federated.transport.exchange import Exchange
from prefect_federated.transport.room import Asked
from prefect_federated.transport.roster import Roster, SiteRecord
from prefect_federated.transport.session import Session
from prefect_federated.transport.signals import Attachment, Moment, SiteNotes

SEEDS = 500


def test_nothing_that_must_not_happen_happens() -> None:
    outcomes = [run_seed(seed) for seed in range(SEEDS)]
    failed = [outcome for outcome in outcomes if outcome.violation is not None]
    report = [(outcome.seed, outcome.violation, outcome.trace[-15:]) for outcome in failed[:3]]
    assert not failed, report
    assert sum(outcome.rounds for outcome in outcomes) > 10 * SEEDS
    assert sum(outcome.notes for outcome in outcomes) > 10 * SEEDS
    assert sum(outcome.attempts for outcome in outcomes) > 5 * SEEDS  # controllers did die


def test_a_seed_replays_exactly_what_happened() -> None:
    assert run_seed(4) == run_seed(4)


def _counts_twice(patch: pytest.MonkeyPatch) -> None:
    settle = Exchange.settle

    def settle_again(
        self: Exchange, site: str, task: str, reply: Reply, blame: bool = True
    ) -> bool:
        asked = self.sites[site].open.get(task)
        settled = settle(self, site, task, reply, blame)
        if asked is not None and asked.call is not None and not asked.call.is_closed:
            self.sites[site].open[task] = asked
        return settled

    patch.setattr(Exchange, "settle", settle_again)


def _forgets_the_quorum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CallRecord, "check_quorum", lambda self: None)


def _keeps_no_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exchange, "look", lambda self: None)


def _obeys_old_controllers(patch: pytest.MonkeyPatch) -> None:
    welcome, hello = Session.welcome, Session.hello

    def welcome_all(self: Session, epoch: int, wanted: list[str]) -> bool:
        self.epoch = 0
        return welcome(self, epoch, wanted)

    patch.setattr(Session, "welcome", welcome_all)
    patch.setattr(Session, "hello", lambda self: replace(hello(self), epoch=0))


def _takes_what_was_not_asked(patch: pytest.MonkeyPatch) -> None:
    find = Exchange.find

    def find_any(
        self: Exchange, attachment: Attachment, task: str, is_failure: bool = False
    ) -> Asked | None:
        asked = find(self, attachment, task, is_failure)
        call = next(iter(self.calls.values()), None)
        if asked is None and call is not None and attachment.site in call.waiting:
            record = self.sites[attachment.site]
            return record.open.setdefault(
                task, Asked(attachment.site, task, call, call.kind, call.terms, 0.0)
            )
        return asked

    patch.setattr(Exchange, "find", find_any)
    patch.setattr(Session, "close", lambda self, task: None)  # or sites would not send it at all


def _listens_to_anybody(patch: pytest.MonkeyPatch) -> None:
    def note(self: Exchange, attachment: Attachment, notes: SiteNotes) -> None:
        self._notify(Moment("metrics_logged", attachment.site, 1, {"kind": "train"}))

    patch.setattr(Exchange, "note", note)


def _never_sends_again(patch: pytest.MonkeyPatch) -> None:
    def lost(self: Exchange, site: SiteRecord, asked: Asked) -> None:
        pass

    patch.setattr(Exchange, "_lost", lost)
    patch.setattr(Roster, "count_failure", lambda self, record, site, reason: None)
    patch.setattr(Exchange, "_check_deadlines", lambda self, call, now: call.deadline[0] + 10_000)


@pytest.mark.parametrize(
    "plant",
    [
        _counts_twice,
        _forgets_the_quorum,
        _keeps_no_deadline,
        _obeys_old_controllers,
        _takes_what_was_not_asked,
        _listens_to_anybody,
        _never_sends_again,
    ],
)
def test_a_planted_defect_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(run_seed(seed).violation is not None for seed in range(200))
