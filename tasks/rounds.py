"""The rounds of a training job: what FedAvg and its relatives share, written once.

    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            updates = rounds.ask("train", state.model)
            rounds.done({**state.model, **weighted_mean(updates)})
        return rounds.finish()

A job begins with a model file, the executor's "initialize", or its own snapshot; it ends after its
rounds, when its models do not become better any more, or when a person says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, TypeAlias, Unpack

from prefect.logging import get_run_logger
from pydantic import Field, model_validator

from prefect_federated.aggregators import aggregator
from prefect_federated.messages import Reply, Tensor, Tensors, Update
from prefect_federated.tasks.best import Selection, with_best
from prefect_federated.tasks.choosing import Rule, sample
from prefect_federated.tasks.cross_site import SiteModels, cross_site_evaluation
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.pausing import person_agrees
from prefect_federated.tasks.relay import RelayReplies
from prefect_federated.tasks.replies import Replies
from prefect_federated.tasks.snapshots import ModelRef, State, publish, restore, snapshot
from prefect_federated.tasks.terms import Terms

SitesPerRound: TypeAlias = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None


class TrainingJob(JobParameters):
    """The parameters of a job that trains one model in rounds."""

    rounds: int = Field(default=10, ge=1, le=1_000_000, description="Rounds to train.")
    sites_per_round: SitesPerRound = Field(
        default=None,
        description="Sites drawn at random for each round: a count (a whole number), or a share "
        "such as 0.1; all sites if empty.",
    )
    initial_model: str | None = Field(
        default=None,
        description="Path of a .safetensors file in the result storage to begin with; the "
        "executor's 'initialize' at one site if empty.",
    )
    best_by: str | None = Field(
        default=None,
        description="Keep the best model, too, by a metric that the sites measure of it on their "
        "own data before they train from it: 'accuracy' (highest) or '-loss' (lowest). An executor "
        "that does not is asked for 'evaluate' in each round.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="End the job after so many rounds without a better model by `best_by`.",
    )
    pause_after: list[int] = Field(
        default=[],
        description="Rounds after which the job waits until a person resumes it and says whether "
        "it goes on.",
    )
    cross_site_evaluation: bool = Field(
        default=False,
        description="At the end, have each site's model, and the global one, evaluated at every "
        "site. The sites' models are kept on the server meanwhile, and go to the other sites.",
    )

    @model_validator(mode="after")
    def _patience_needs_a_metric(self) -> "TrainingJob":
        if self.patience is not None and self.best_by is None:
            raise ValueError("patience needs best_by: the metric by which a model is better")
        return self

    @model_validator(mode="after")
    def _updates_are_models(self) -> "TrainingJob":
        if any(spec.filter == "difference" for spec in self.filters):
            raise ValueError(
                "with the filter 'difference' sites send changes of the model, and this job takes "
                "them for models; it is for jobs that add changes up, such as fedbuff"
            )
        return self


class AggregatingJob(TrainingJob):
    """The parameters of a job that can choose how the sites' models become one."""

    aggregator: Literal["weighted_mean", "median", "trimmed_mean", "krum", "multi_krum"] = Field(
        default="weighted_mean",
        description="How the sites' models become one: their mean by numbers of examples, or one "
        "that bears sites which send poison, and holds all models of a round in memory.",
    )
    byzantine: int = Field(
        default=1,
        ge=0,
        description="Sites that may send poison, for 'krum' and 'multi_krum': fewer than "
        "(sites - 2) / 2.",
    )
    trim: float = Field(
        default=0.2,
        ge=0,
        lt=0.5,
        description="Share of the sites that 'trimmed_mean' leaves out at each end, for each "
        "number of the model.",
    )

    def aggregate(self, replies: Iterable[Reply]) -> dict[str, Tensor]:
        """Returns the tensors that a round's updates become.

        Raises:
            UpdateRejected: too few updates for the aggregator, or they are not alike.
        """
        named = aggregator(self.aggregator, byzantine=self.byzantine, trim=self.trim)
        return named(replies)


class Rounds:
    """The rounds of one job, from its first state, or its snapshot, to its result.

    Args:
        fed: The running federation.
        job: The job's parameters.
        all_alike: Whether all sites of a round train from the same model; in a relay they do not.
    """

    def __init__(self, fed: Federation, job: TrainingJob, *, all_alike: bool = True) -> None:
        self.fed = fed
        self.job = job
        self.state = restore() or State(model=initial_model(fed, job.initial_model))
        """The job after the last round that is done."""
        self.chosen: Rule | None = (
            None if job.sites_per_round is None else sample(job.sites_per_round)
        )
        """The rule by which a round's sites are chosen; None for all."""
        self._selection = (
            Selection(fed, job.best_by, job.patience, all_alike=all_alike) if job.best_by else None
        )
        self._site_models = SiteModels(fed) if job.cross_site_evaluation else None
        self._read: Replies | RelayReplies | None = None

    @property
    def number(self) -> int:
        """The round that is under way, counted from 1."""
        return self.state.round + 1

    def __iter__(self) -> Iterator[State]:
        """Yields the state before each round; the round ends with `done`."""
        while self.state.round < self.job.rounds and self._goes_on():
            number = self.number
            yield self.state
            if self.state.round != number:
                raise RuntimeError(f"round {number} was not ended by `rounds.done(...)`.")

    def ask(self, kind: str, model: Tensors, **terms: Unpack[Terms]) -> Iterator[Reply]:
        """Asks the round's sites for a site task; yields their replies as they arrive.

        Args:
            kind: The site task.
            model: Tensors that go to each site.
            terms: As for `fed.broadcast`.

        Raises:
            QuorumNotReached: too few sites have answered.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        asked: Terms = {"round": self.number, **terms}
        return self.reading(self.fed.broadcast(kind, model, sites=self.chosen, **asked))

    def reading(self, replies: Replies | RelayReplies) -> Iterator[Reply]:
        """Yields the replies to a call that the flow has made itself, and notes its report."""
        self._read = replies
        if self._site_models is None:
            yield from replies
        else:
            yield from self._site_models.keeping(replies, self.number, self._model_in)

    def done(self, model: Tensors, extra: Mapping[str, Tensors] | None = None) -> None:
        """Ends a round with its new model: it may be the best one, and is written as a snapshot.

        Args:
            model: The global model after the round.
            extra: What else the next round needs, such as an optimizer's moments.

        Raises:
            SnapshotFailed: the snapshot before could not be written.
            StaleController: a newer attempt of the job has taken over.
        """
        report = None if self._read is None else self._read.report
        metrics = {} if report is None else report.metrics
        before, self.state = self.state, State(model, self.number, extra or {})
        if self._selection is not None:
            self._selection.after_training(before, metrics)
            self._selection.after_round(self.state, metrics)
        snapshot(self.state)

    def finish(self) -> ModelRef:
        """Has the sites evaluate the last model, publishes it, and returns where it is.

        With `cross_site_evaluation` they evaluate each other's models, too.

        Raises:
            SnapshotFailed: it could not be written.
            StaleController: a newer attempt of the job has taken over.
        """
        metrics = evaluate(self.fed, self.state.model)
        if self._selection is not None:
            self._selection.at_the_end(self.state, metrics)
        if self._site_models is not None:
            cross_site_evaluation(self.fed, self._site_models, self.state.model, self.state.round)
        return with_best(publish(self.state), self._selection)

    def _model_in(self, update: Update) -> Tensors:
        """Returns an update's tensors without those that are no part of the model."""
        return {name: array for name, array in update.tensors.items() if name in self.state.model}

    def _goes_on(self) -> bool:
        if self._selection is not None and self._selection.is_enough:
            best, by = self._selection.best, str(self.job.best_by).removeprefix("-")
            get_run_logger().info(
                "the models have not become better for %d rounds; %s",
                self.job.patience,
                f"none has a finite {by}"
                if best is None
                else f"the best, after round {best.round}, has {by} {best.value:.5g}",
            )
            return False
        return self.state.round not in self.job.pause_after or person_agrees(self.state.round)
