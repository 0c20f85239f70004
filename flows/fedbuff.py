"""Asynchronous federated averaging: no site waits for another.

Source: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", Algorithm 1
(FedBuff): after every K updates the model moves by their mean, each times 1 / sqrt(1 + staleness).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import fmean

from prefect import flow
from pydantic import Field

from prefect_federated.aggregators import weighted_mean
from prefect_federated.filters import FilterSpec
from prefect_federated.messages import Update
from prefect_federated.server_steps import stepped
from prefect_federated.tasks.federation import Federation, federation, first_completed
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.replies import ReplyFuture
from prefect_federated.tasks.snapshots import ModelRef, State, publish, restore, snapshot


class FedBuffJob(JobParameters):
    """The parameters of a FedBuff job."""

    rounds: int = Field(default=10, ge=1, description="Steps of the server's model.")
    updates_per_round: int = Field(default=10, ge=1, description="Updates that make a step (K).")
    server_lr: float = Field(default=1.0, gt=0, description="Learning rate of the server's step.")
    initial_model: str | None = Field(
        default=None, description="A .safetensors file to begin with; 'initialize' if empty."
    )


@dataclass
class _Buffer:
    fed: Federation
    size: int
    at_work: dict[str, ReplyFuture] = field(default_factory=dict)  # by site
    read: list[ReplyFuture] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def fill(self, state: State) -> Iterator[Update]:
        """Yields the next K updates as they arrive; keeps all sites at work meanwhile."""
        self.read, self.weights = [], []
        step = state.round + 1
        while len(self.weights) < self.size:
            for site in self.fed.idle("train", self.at_work):
                self.at_work[site] = self.fed.send.submit(
                    "train", state.model, sites=site, round=step, quorum=0, late_weight=0,
                    reported=False,
                )  # fmt: skip
            done, _ = first_completed(self.at_work.values(), timeout_s=0.5)  # or a site joins
            for future in done[: self.size - len(self.weights)]:
                self.read.append(self.at_work.pop(future.sites[0]))
                for reply in future.replies:
                    if isinstance(reply, Update):
                        staleness = step - future.round
                        self.weights.append((1 + staleness) ** -0.5)
                        yield replace(reply, weight=self.weights[-1], staleness=staleness)


@flow(name="fedbuff", retries=2, persist_result=True, result_serializer="json")
@takes(FedBuffJob)
def fedbuff(job: FedBuffJob) -> ModelRef:
    """Trains one model on the data of many sites, none of which waits for another."""
    with federation(job, filters=[FilterSpec(filter="difference", at="leaving_site")]) as fed:
        state = restore() or State(model=initial_model(fed, job.initial_model))
        buffer = _Buffer(fed, job.updates_per_round)
        while state.round < job.rounds:
            change = weighted_mean(buffer.fill(state))  # over the weights' sum; the paper's, over K
            lr = job.server_lr * fmean(buffer.weights)
            state = State(model=stepped(state.model, change, lr), round=state.round + 1)
            fed.round_done(state.round, buffer.read)
            snapshot(state)
        evaluate(fed, state.model)
        return publish(state)
