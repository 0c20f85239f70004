"""The best model of a job, kept beside its last one, and when to stop looking for a better one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.snapshots import ModelRef, State, publish, stored_at

BEFORE_TRAINING = "val_"
"""Begins the names of metrics of the model as a site received it, measured before it trained."""

_NAME = "best"


@dataclass(frozen=True)
class Score:
    """What a metric says of a round's model.

    Args:
        round: The last round that is in the model.
        value: The metric, averaged over the sites by their numbers of examples.
    """

    round: int
    value: float


class Selection:
    """Chooses a job's best model by what the sites measure of it on their own data.

    The best is `best.safetensors`, beside the job's model, and has a link in the Prefect UI. A
    value that is not finite never wins. What earlier attempts of the job have found is taken from
    the job's table.

    Args:
        fed: The running federation.
        by: A metric of the executor: "accuracy" (the higher the better), or "-loss" (the lower the
            better). Its mean over the sites is weighted by their numbers of examples.
        patience: Rounds without a better model after which it is enough; None for no end.
        all_alike: Whether all sites of a round train from the same model. In a relay they do not:
            what they measure before they train is of no one model.
    """

    def __init__(
        self, fed: Federation, by: str, patience: int | None = None, *, all_alike: bool = True
    ) -> None:
        self.best: Score | None = None
        self._fed = fed
        self._by = by
        self._name, self._sign = by.removeprefix("-"), -1.0 if by.startswith("-") else 1.0
        self._patience = patience
        self._all_alike = all_alike
        self._judged = -1  # the newest round whose model was judged
        for row in fed.reporter.history:
            self._recall(row)

    @property
    def is_enough(self) -> bool:
        """Whether the models have not become better for so many rounds."""
        if self._patience is None:
            return False
        since = -1 if self.best is None else self.best.round
        return self._judged - since >= self._patience

    @property
    def path(self) -> str | None:
        """Where the best model is: a `.safetensors` file in Prefect's result storage."""
        return None if self.best is None else stored_at(f"{_NAME}.safetensors")

    def after_training(self, state: State, metrics: Mapping[str, float]) -> None:
        """Judges the model that the sites have been given to train from.

        Its metrics come with their updates where the executor measures before it trains, as names
        that begin with "val_". Otherwise the model has been judged already, by `after_round`.

        Args:
            state: The state whose model the sites were given.
            metrics: Means over the sites, from the round's report.

        Raises:
            ConfigurationError: there are such metrics, but not this one.
        """
        measured = self._before_training(metrics)
        if measured and state.round > self._judged:
            self._judge(state, measured)

    def after_round(self, state: State, metrics: Mapping[str, float]) -> None:
        """Has the sites evaluate a round's new model, unless they will before they train from it.

        Args:
            state: The state after the round.
            metrics: Means over the sites, from the round's report.

        Raises:
            ExecutorNotFound: the executor has no "evaluate".
            ConfigurationError: it gives no such metric.
            QuorumNotReached: too few sites have evaluated.
        """
        if not self._before_training(metrics):
            self._judge(state, self._evaluated(state))

    def at_the_end(self, state: State, metrics: Mapping[str, float]) -> None:
        """Judges the last model by what the sites' last "evaluate" has given, if it is still new.

        Args:
            state: The state after the last round.
            metrics: Means over the sites; may be empty.
        """
        if self._name in metrics and state.round > self._judged:
            self._judge(state, metrics)

    def _evaluated(self, state: State) -> Mapping[str, float]:
        replies = self._fed.broadcast("evaluate", state.model, round=state.round, late_weight=0)
        for _ in replies:
            pass
        return {} if replies.report is None else replies.report.metrics

    def _judge(self, state: State, metrics: Mapping[str, float]) -> None:
        if self._name not in metrics:
            raise ConfigurationError(
                f"the best model is chosen by {self._by!r}, but executor "
                f"{self._fed.job.executor!r} measures {', '.join(sorted(metrics)) or 'no metric'}. "
                "Name one of these as `best_by`, with a '-' before it if less is better."
            )
        score = Score(state.round, _as_in_the_table(metrics[self._name]))
        if not self._is_better(score):
            return
        self.best = score
        reference = publish(state, _NAME)
        detail: dict[str, JsonValue] = {
            "metric": self._name, "value": score.value, "path": reference.path
        }  # fmt: skip
        self._fed.events.tell("best_model", state.round, detail)

    def _is_better(self, score: Score) -> bool:
        self._judged = max(self._judged, score.round)
        if not math.isfinite(score.value):
            return False
        return self.best is None or self._sign * score.value > self._sign * self.best.value

    def _before_training(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {
            name.removeprefix(BEFORE_TRAINING): value
            for name, value in metrics.items()
            if self._all_alike and name.startswith(BEFORE_TRAINING)
        }

    def _recall(self, row: Mapping[str, JsonValue]) -> None:
        """Takes from a row of the table what an earlier attempt has judged."""
        number = int(str(row["round"]))
        before = row.get(BEFORE_TRAINING + self._name) if self._all_alike else None
        plain = row.get(self._name) if row["kind"] == "evaluate" and number else None
        for value, judged in ((before, number - 1), (plain, number)):
            if isinstance(value, int | float):
                score = Score(judged, float(value))
                if self._is_better(score):
                    self.best = score


def keep_best(fed: Federation, state: State, by: str) -> bool:
    """Evaluates a round's model at the sites and keeps it if it is the best so far; whether it is.

    For flows that are not written with `Rounds`; see `Selection`.

    Args:
        fed: The running federation.
        state: The job after a round.
        by: A metric of the executor's "evaluate": "accuracy" (the higher the better), or "-loss"
            (the lower the better).

    Raises:
        ExecutorNotFound: the executor has no "evaluate".
        ConfigurationError: it gives no such metric.
        QuorumNotReached: too few sites have evaluated.
    """
    selection = Selection(fed, by)
    selection.after_round(state, {})
    return selection.best is not None and selection.best.round == state.round


def with_best(reference: ModelRef, selection: Selection | None) -> ModelRef:
    """Returns a job's result with where its best model is, and of which round."""
    if selection is None or selection.best is None:
        return reference
    best = {"best_path": selection.path, "best_round": selection.best.round}
    return reference.model_copy(update=best)


def _as_in_the_table(value: float) -> float:
    """Returns a metric with the digits that the job's table has, with which it is compared."""
    return float(f"{value:.7g}")
