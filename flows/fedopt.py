"""FedOpt: the mean of the sites' models is a gradient, which the server's optimizer follows.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 1 (the sites train with
plain SGD; the server takes Delta_t, the mean of x_i - x_t, for a gradient) and Algorithm 2
(FedAdagrad, FedYogi, FedAdam). Buffers, such as a batch norm's statistics, are averaged: they are
no parameters. We weight Delta_t by the sites' numbers of examples, as FedAvg does.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from prefect import flow
from pydantic import Field

from prefect_federated.messages import Reply, Update
from prefect_federated.server_optimizers import ServerOptimizer, learning_rate
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.rounds import AggregatingJob, Rounds
from prefect_federated.tasks.snapshots import ModelRef


class FedOptJob(AggregatingJob):
    """The parameters of a FedOpt job."""

    server_optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = Field(
        default="sgd",
        description="What the server steps with: 'sgd' (FedAvgM with momentum), 'adam', 'yogi' or "
        "'adagrad'.",
    )
    server_lr: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of the server's step; if empty 1 for 'sgd' and 0.01 for the "
        "adaptive ones, which move each number of the model by about that much a round.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of 'sgd'.")
    beta1: float = Field(
        default=0.9, ge=0, lt=1, description="Decay of the mean gradient in 'adam' and 'yogi'."
    )
    beta2: float = Field(
        default=0.99, ge=0, lt=1, description="Decay of its mean square in 'adam' and 'yogi'."
    )
    tau: float = Field(
        default=1e-3,
        gt=0,
        description="Added to the root of the mean square in 'adam', 'yogi' and 'adagrad': the "
        "larger, the less adaptive.",
    )
    schedule: Literal["constant", "step", "exponential", "cosine"] = Field(
        default="constant", description="How the server's learning rate falls over the rounds."
    )
    warmup_rounds: int = Field(
        default=0, ge=0, description="Rounds in which the server's learning rate rises to its full."
    )
    schedule_factor: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="What the learning rate is multiplied by at each step of 'step' (0.1 if empty) "
        "or in each round of 'exponential' (0.99).",
    )
    schedule_every: int | None = Field(
        default=None,
        ge=1,
        description="Rounds between two steps of 'step'; a third of the rounds if empty.",
    )

    def lr_of(self, round: int) -> float:
        """Returns the server's learning rate in a round."""
        full = self.server_lr or (1.0 if self.server_optimizer == "sgd" else 0.01)
        return learning_rate(
            self.schedule, full, round, self.rounds, warmup=self.warmup_rounds,
            every=self.schedule_every, factor=self.schedule_factor,
        )  # fmt: skip


@flow(name="fedopt", retries=2, persist_result=True, result_serializer="json")
@takes(FedOptJob)
def fedopt(job: FedOptJob) -> ModelRef:
    """Trains one model on the data of many sites; the server's optimizer makes the steps."""
    optimizer = ServerOptimizer(
        job.server_optimizer, momentum=job.momentum, beta1=job.beta1, beta2=job.beta2, tau=job.tau
    )
    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            buffers: set[str] = set()
            updates = rounds.ask("train", state.model)
            mean = job.aggregate(noting_buffers(updates, buffers))
            model, moments = optimizer.step(
                state.model, mean, state.extra, rounds.number, buffers, job.lr_of(rounds.number)
            )
            rounds.done(model, moments)
        return rounds.finish()


def noting_buffers(replies: Iterable[Reply], buffers: set[str]) -> Iterator[Reply]:
    """Passes replies on, and collects the names of the tensors that are no parameters."""
    for reply in replies:
        if isinstance(reply, Update):
            buffers.update(reply.buffers)
        yield reply
        del reply  # before the next one is received: it may hold as much memory as the model
