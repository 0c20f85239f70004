"""XGBoost's own distributed training, whose collective calls the controller carries.

Each site trains on a thread of its own. Whatever a collective call needs of the others goes to the
controller as the answer of a site task, is reduced here, and goes back with the next site task. All
calls of a boosting round make one Prefect task run and one row of the job's table.

A site that is lost ends the training of all: they begin anew from the last snapshot of the model.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State as RunState
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from prefect_federated.adapters.xgboost.events import BOOSTER, Bytes, RoundDone
from prefect_federated.adapters.xgboost.merge import check_booster
from prefect_federated.adapters.xgboost.metrics import score_of
from prefect_federated.errors import ConfigurationError, QuorumNotReached, UpdateRejected
from prefect_federated.messages import JsonValue, Tensors
from prefect_federated.tasks.collective_group import Group, SitesLost
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.tasks.snapshots import State, snapshot
from prefect_federated.transport.calls import CallTerms

_ATTEMPTS = 3  # in a row that do not get one round further
_MOST_BYTES = 1 << 40  # of an answer: what the limits of both sides allow
_ATTEMPTS_OF_EPOCH = 100_000
_PRESENT = "present"


class Wanted(Protocol):
    """What a collective training needs to know of its job."""

    rounds: int
    early_stopping_rounds: int | None
    snapshot_every: int
    on_lost: Literal["wait", "continue"]
    lost_timeout_s: float
    round_timeout_s: float
    lost_after_s: float

    def updates_needed(self, asked: int) -> int:
        """Returns the number of sites that are enough."""
        ...


class Boosting:
    """The boosting rounds of one job, from its first one, or its snapshot, to the model.

    Args:
        fed: The running federation.
        job: What is wanted.
        config: Settings of the site task "start".
        sites: The sites that train, in the order of their ranks: the first gives the model.
        features: Columns that its trees may split.
        state: The job after its last snapshot; None for a new job.
        kept: Further named tensors that each snapshot holds.

    """

    def __init__(
        self, fed: Federation, job: Wanted, config: Mapping[str, JsonValue], sites: Sequence[str],
        features: int, *, state: State | None = None, kept: Mapping[str, Tensors] | None = None,
    ) -> None:  # fmt: skip
        self.fed = fed
        self.job = job
        self.state = state or State({})
        """The job after its last snapshot."""
        self.scores = [float(score) for score in self.state.extra.get("scores", {}).get("all", [])]
        """What the rounds are judged by, one number a round; empty without an evaluation."""
        self.measured: dict[str, float] = {}
        """What the training itself has measured of its model; empty where it does not."""
        self.present = _rounds_in(self.state)
        """The sites that have grown the trees of each round."""
        self._kept = kept or {}
        self._features = features
        self._all = list(sites)
        self._config = config
        self._rows = len(fed.reporter.history)  # of the table, at the last snapshot
        self._attempts = 0
        self._fruitless = 0  # attempts since the job got further than ever
        self._furthest = self.state.round
        self._group = self._new_group(self._all)

    @property
    def sites(self) -> Sequence[str]:
        """The sites that train now, by rank."""
        return self._group.sites

    @property
    def best_round(self) -> int | None:
        """The best round by the evaluation, counted from 1; None without one."""
        best = max(self.scores, default=-math.inf)
        return None if best == -math.inf else 1 + self.scores.index(best)

    def train(self) -> bytes:
        """Has all rounds trained, and returns the model as UBJSON.

        With early stopping it ends when the evaluation does not become better, with the best round.

        Raises:
            ConfigurationError: the training failed at a site, and would again.
            QuorumNotReached: too few sites are left, or one that is waited for is not back.
            UpdateRejected: the sites do not train alike.
        """
        if "ended" not in self.state.extra:
            with self.fed.untold():
                while True:
                    try:
                        if self._is_done:
                            self._finish()
                            break
                        self._next_round()
                    except SitesLost as lost:
                        self._go_back(lost)
        return bytes(np.asarray(self.state.model[BOOSTER]).tobytes())

    # Rounds

    @property
    def _is_done(self) -> bool:
        done, best = self._group.done, self.best_round
        patience = self.job.early_stopping_rounds
        if patience is not None and best is not None and done - best >= patience:
            return True
        return done >= self.job.rounds

    def _next_round(self) -> None:
        group, number = self._group, self._group.done + 1
        self.fed.asker.starts("boost", number, len(group.sites))
        began_at, outcome = time.time(), _Outcome()
        run = boost.with_options(task_run_name=f"round {number} · boost")
        run(group, outcome, return_state=True)
        self._report(number, began_at)
        if outcome.error is not None:
            raise outcome.error
        first = outcome.rounds[0]
        if number > self._furthest:
            self._furthest, self._fruitless = number, 0
        self.scores.append(score_of(first.metrics))
        self.present.append(list(group.sites))
        if first.booster.size:
            self._keep(first.round, first.booster)

    def _report(self, number: int, began_at: float) -> None:
        calls = self._group.take_calls()
        if not calls:
            return
        report = RoundReport.of(calls, began_at)
        lost = {site for call in calls for site, r in call.reports.items() if r.reason is not None}
        asked = len(self._group.sites)
        report = replace(
            report, kind="boost", round=number, asked=asked, answered=asked - len(lost),
            site_metrics={},
        )  # fmt: skip
        self.fed.reporter.round_done(report)
        self.fed.events.answered(number, report.summary())

    def _keep(self, round: int, booster: Bytes, *, is_ended: bool = False) -> None:
        check_booster(booster, self._features, self.sites[0])  # XGBoost follows any tree's indices
        there = {name for sites in self.present for name in sites}
        extra: dict[str, Tensors] = {
            **self._kept,
            "scores": {"all": np.array(self.scores, np.float64)},
            _PRESENT: {site: np.array([site in each for each in self.present]) for site in there},
        }
        if is_ended:
            extra["ended"] = {"rounds": np.array([round])}
        self.state = State({BOOSTER: np.array(booster)}, round, extra)
        self._rows = len(self.fed.reporter.history)
        snapshot(self.state)

    def _finish(self) -> None:
        keep = self.best_round if self.job.early_stopping_rounds is not None else None
        ended = self._group.finish(keep)
        self.measured = ended.metrics
        self._group.take_calls()
        self._keep(self._group.done, ended.booster, is_ended=True)

    # Sites that are lost

    def _new_group(self, sites: Sequence[str]) -> Group:
        self._attempts += 1
        config: dict[str, JsonValue] = {
            **self._config, "rounds": self.job.rounds, "done": self.state.round,
            "snapshot_every": self.job.snapshot_every, "ranks": list(sites),
        }  # fmt: skip
        terms = CallTerms(
            quorum=0,
            timeout_s=self.job.round_timeout_s,
            lost_after_s=self.job.lost_after_s,
            max_reply_bytes=_MOST_BYTES,
        )
        attempt = self.fed.hub.epoch * _ATTEMPTS_OF_EPOCH + self._attempts
        return Group(self.fed, list(sites), attempt, terms, self.state, config)

    def _go_back(self, lost: SitesLost) -> None:
        """Has the others end, and begins anew from the last snapshot: without the lost, or with.

        Raises:
            QuorumNotReached: too few are left, they are not back in time, or it is of no use.
        """
        log, left = get_run_logger(), [s for s in self.sites if s not in lost.reasons]
        self._group.stop(left)
        self._group.take_calls()
        self._fruitless += 1
        where = f"round {self._group.done + 1}"
        if self._fruitless >= _ATTEMPTS:
            raise QuorumNotReached(
                f"{where}: {_ATTEMPTS} attempts in a row have lost a site before they had one more "
                f"round. The last: {lost}. Look at those sites' own logs."
            )
        if self.job.on_lost == "wait":
            log.warning("%s: lost %s; all wait until it is back", where, lost)
            self._wait_for(lost, where)
            left = list(self.sites)
        else:
            needed = self.job.updates_needed(len(self._all))
            if len(left) < needed:
                raise QuorumNotReached(
                    f"{where}: {len(left)} of {len(self._all)} sites are left, the quorum is "
                    f"{needed}. Lost: {lost}."
                )
            log.warning("%s: lost %s; the other %d go on without", where, lost, len(left))
        del self.scores[self.state.round :], self.present[self.state.round :]
        self.fed.reporter.resume(self.fed.reporter.history[: self._rows], self.state.round)
        self._group = self._new_group(left)

    def _wait_for(self, lost: SitesLost, where: str) -> None:
        hub = self.fed.hub
        deadline = hub.clock() + self.job.lost_timeout_s
        with hub.changed:
            while away := [site for site in lost.reasons if not hub.is_attached(site)]:
                hub.raise_if_stale()
                if (left := deadline - hub.clock()) <= 0:
                    raise QuorumNotReached(
                        f"{where}: {', '.join(away)} not back within {self.job.lost_timeout_s:g} s "
                        f"({lost}). Start the site again and the job once more, which goes on from "
                        f"round {self.state.round}; or set on_lost to 'continue'."
                    )
                hub.changed.wait(min(left, 1.0))


def _rounds_in(state: State) -> list[list[str]]:
    """Returns which sites have grown the trees of each round that a snapshot knows of."""
    told = state.extra.get(_PRESENT, {})
    rounds = max((array.size for array in told.values()), default=0)
    return [sorted(site for site, is_there in told.items() if is_there[n]) for n in range(rounds)]


@dataclass
class _Outcome:
    """What a Prefect task run of a round hands back, which must not keep it."""

    rounds: list[RoundDone] = field(default_factory=list)
    error: Exception | None = None


@task(name="boost", cache_policy=NO_CACHE, persist_result=False)
def boost(group: Group, outcome: _Outcome) -> RunState[None]:
    """Carries the collective calls of one boosting round; Failed, with the reason, if it has none.

    Args:
        group: The sites that train together.
        outcome: Takes what comes out.
    """
    try:
        outcome.rounds = group.next_round()
    except (SitesLost, UpdateRejected, ConfigurationError) as error:
        outcome.error = error
        return Failed(message=str(error))
    metrics = "".join(f", {name} {value:.4g}" for name, value in outcome.rounds[0].metrics.items())
    calls, sites = group.calls_made, len(group.sites)
    return Completed(message=f"{sites} sites, {calls} collective calls{metrics}")
