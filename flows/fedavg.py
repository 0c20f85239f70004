"""Federated averaging, and FedProx, which differs from it in the sites' loss only.

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", Algorithm 1: a round asks all sites that are there (C = 1), or `sites_per_round` of them, and
w_{t+1} = sum_k n_k / n w_{t+1}^k. Li et al. 2020, "Federated Optimization in Heterogeneous
Networks", Algorithm 2: each site minimizes F_k(w) + mu / 2 ||w - w_t||^2 (their equation 2).
"""

from prefect import flow
from pydantic import Field

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.rounds import AggregatingJob, Rounds
from prefect_federated.tasks.snapshots import ModelRef


class FedAvgJob(AggregatingJob):
    """The parameters of a FedAvg job."""

    mu: float = Field(
        default=0,
        ge=0,
        description="FedProx: weight of the proximal term in the sites' loss; 0 for FedAvg.",
    )


@flow(name="fedavg", retries=2, persist_result=True, result_serializer="json")
@takes(FedAvgJob)
def fedavg(job: FedAvgJob) -> ModelRef:
    """Trains one model on the data of many sites by federated averaging."""
    local = {"mu": job.mu} if job.mu else {}
    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            updates = rounds.ask("train", state.model, config=local)
            rounds.done({**state.model, **job.aggregate(updates)})
        return rounds.finish()
