"""Federated averaging.

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", Algorithm 1. A round asks all sites that are there (C = 1), or `sites_per_round` of them.
"""

from typing import Annotated, TypeAlias

from prefect import flow
from pydantic import Field

from prefect_federated.aggregators import weighted_mean
from prefect_federated.tasks.best import keep_best
from prefect_federated.tasks.choosing import sample
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.pausing import person_agrees
from prefect_federated.tasks.snapshots import ModelRef, State, publish, restore, snapshot

SitesPerRound: TypeAlias = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None


class FedAvgJob(JobParameters):
    """The parameters of a FedAvg job."""

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
        description="Keep the best model, too, by a metric of the executor's 'evaluate', which "
        "then runs in each round: 'accuracy' (highest) or '-loss' (lowest).",
    )
    pause_after: list[int] = Field(
        default=[],
        description="Rounds after which the job waits until a person resumes it and says whether "
        "it goes on.",
    )


@flow(name="fedavg", retries=2, persist_result=True, result_serializer="json")
@takes(FedAvgJob)
def fedavg(job: FedAvgJob) -> ModelRef:
    """Trains one model on the data of many sites by federated averaging."""
    chosen = None if job.sites_per_round is None else sample(job.sites_per_round)
    with federation(job) as fed:
        state = restore() or State(model=initial_model(fed, job.initial_model))
        for number in range(state.round + 1, job.rounds + 1):
            if state.round in job.pause_after and not person_agrees(state.round):
                break
            updates = fed.broadcast("train", state.model, sites=chosen, round=number)
            state = State(model={**state.model, **weighted_mean(updates)}, round=number)
            if job.best_by is not None:
                keep_best(fed, state, by=job.best_by)
            snapshot(state)
        evaluate(fed, state.model)
        return publish(state)
