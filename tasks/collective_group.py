"""Sites that train together by XGBoost's own collective: what they wait for, and what they say.

A call gives each site what its training waits for; its answer is the training's next event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from prefect_federated.adapters.xgboost.events import (
    RESULT,
    CollectiveCall,
    Ended,
    Event,
    Failed,
    Gone,
    RoundDone,
    event_of,
)
from prefect_federated.adapters.xgboost.reduction import result_of
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.messages import JsonValue, Message, SiteFailure, Tensors
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.simulated import current_simulation
from prefect_federated.tasks.snapshots import State
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.waiting import Call

_STOP_S = 60.0

EventKind = TypeVar("EventKind", bound=Event)


class SitesLost(Exception):  # no error of the job's: it goes back and on
    """Sites that do not answer any more; `reasons` has why, by site."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{site}: {reason}" for site, reason in reasons.items()))
        self.reasons = dict(reasons)


class Group:
    """Sites that train together, in one attempt, from one snapshot of the model.

    Args:
        fed: The running federation.
        sites: The sites, by rank.
        attempt: The attempt's number.
        terms: What each call waits for.
        state: Where they begin.
        config: Settings of the site task "start".
    """

    def __init__(
        self,
        fed: Federation,
        sites: list[str],
        attempt: int,
        terms: CallTerms,
        state: State,
        config: Mapping[str, JsonValue],
    ) -> None:
        self.sites = sites
        self.done = state.round
        """Rounds that are in the model now."""
        self.calls_made = 0
        self._hub = fed.hub
        self._terms = terms
        self._attempt: dict[str, JsonValue] = {"attempt": attempt}
        self._next: tuple[str, Tensors, Mapping[str, JsonValue]] = "start", state.model, config
        self._calls: list[Call] = []

    def next_round(self) -> list[RoundDone]:
        """Carries collective calls until a round is done; returns what the sites say, by rank.

        Raises:
            SitesLost: sites do not answer.
            ConfigurationError: the training failed at a site.
            UpdateRejected: the sites are not at the same call.
        """
        rounds = self._until(RoundDone)
        self.done += 1
        for site, event in zip(self.sites, rounds, strict=True):
            if event.round != self.done:
                raise UpdateRejected(
                    f"site {site!r} has {event.round} rounds, and the others are at {self.done}. "
                    "Have all sites run the same version of prefect-federated."
                )
        return rounds

    def finish(self, keep: int | None) -> Ended:
        """Ends the training, with so many rounds in the model; returns what rank 0 gives."""
        if self._next[0] == "go_on" and keep is not None:
            self._next = "go_on", {}, {"keep": keep}
        return self._until(Ended)[0]

    def stop(self, sites: Sequence[str]) -> None:
        """Has the training ended at those of the sites that are connected."""
        there = [site for site in sites if self._hub.is_attached(site)]
        if there:
            terms = replace(self._terms, timeout_s=_STOP_S)
            for _ in self._hub.call("stop", Message({"config": {}}), there, terms):
                pass

    def take_calls(self) -> list[Call]:
        """Returns the calls that were made since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def _until(self, kind: type[EventKind]) -> list[EventKind]:
        self.calls_made = 0
        while True:
            events = self._ask()
            found = [cast(EventKind, event) for event in events.values() if type(event) is kind]
            if len(found) == len(events):
                self._next = "go_on", {}, {}
                return found
            self.calls_made += 1
            calls = {s: event for s, event in events.items() if isinstance(event, CollectiveCall)}
            if len(calls) < len(events):
                others = ", ".join(f"{s}: {type(event).__name__}" for s, event in events.items())
                raise UpdateRejected(
                    f"the sites' trainings are not at the same place ({others}). All must have the "
                    "same parameters and the same version of xgboost."
                )
            self._next = "go_on", {RESULT: result_of(calls)}, {}

    def _ask(self) -> dict[str, Event]:
        """Gives all sites what they wait for; returns their next events, by rank."""
        kind, tensors, config = self._next
        terms = replace(self._terms, round=self.done + 1)
        message = Message({"config": {**config, **self._attempt}}, tensors)
        call = self._hub.call(kind, message, self.sites, terms)
        self._calls.append(call)
        events: dict[str, Event] = {}
        lost: dict[str, str] = {}
        for reply in call:
            if isinstance(reply, SiteFailure):
                lost[reply.site] = reply.reason
                continue
            event = events[reply.site] = event_of(reply)
            if isinstance(event, Gone):
                lost[reply.site] = "its process was another than the one that had begun to train"
        said = ((site, events.get(site)) for site in self.sites)
        failed = {site: event.reason for site, event in said if isinstance(event, Failed)}
        if failed:
            told = "; ".join(
                f"{', '.join(site for site, own in failed.items() if own == reason)}: {reason}"
                for reason in dict.fromkeys(failed.values())
            )
            raise ConfigurationError(f"round {self.done + 1}: xgboost could not train. {told}")
        if lost:
            raise SitesLost(lost)
        return {site: events[site] for site in self.sites}


def check_can_carry(fed: Federation) -> None:
    """Raises `ConfigurationError` where collective calls cannot be carried unchanged."""
    if fed.job.filters:
        raise ConfigurationError(
            "this job has filters, and its sites' trainings exchange histograms that must arrive "
            "as they were sent: a changed one would give each site another tree. Leave the filters "
            "out, or train with xgboost-bagging."
        )
    simulation = current_simulation()
    if simulation is not None and simulation.runner != "threads":
        raise ConfigurationError(
            f"the simulator runs site tasks in {simulation.runner!r}, where each may come to "
            "another process; a distributed training stays where it began. Simulate with "
            "threads: leave out --processes and --runner."
        )
