"""Federated averaging.

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", Algorithm 1. Every site that is there takes part in each round (C = 1).
"""

from prefect import flow
from pydantic import Field

from prefect_federated.aggregators import weighted_mean
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.snapshots import ModelRef, State, publish, restore, snapshot


class FedAvgJob(JobParameters):
    """The parameters of a FedAvg job."""

    rounds: int = Field(default=10, ge=1, le=1_000_000, description="Rounds to train.")
    initial_model: str | None = Field(
        default=None,
        description="Path of a .safetensors file in the result storage to begin with; the "
        "executor's 'initialize' at one site if empty.",
    )


@flow(name="fedavg", retries=2, persist_result=True, result_serializer="json")
@takes(FedAvgJob)
def fedavg(job: FedAvgJob) -> ModelRef:
    """Trains one model on the data of many sites by federated averaging."""
    with federation(job) as fed:
        state = restore() or State(model=initial_model(fed, job.initial_model))
        for number in range(state.round + 1, job.rounds + 1):
            updates = fed.broadcast("train", state.model, round=number)
            state = State(model=weighted_mean(updates), round=number)
            snapshot(state)
        evaluate(fed, state.model)
        return publish(state)
