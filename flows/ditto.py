"""Ditto: beside the global model, each site trains a personal one, which never leaves it.

Source: Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
Algorithm 1: the global model w is trained as in FedAvg; site k keeps v_k and minimizes
F_k(v) + lambda / 2 ||v - w_t||^2 (their h_k in Section 3, at the w_t that it was given). The server
sees what the personal models score (`personal_...`), and never the models.
"""

from prefect import flow
from pydantic import Field

from prefect_federated.messages import JsonValue
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.rounds import AggregatingJob, Rounds
from prefect_federated.tasks.snapshots import ModelRef


class DittoJob(AggregatingJob):
    """The parameters of a Ditto job."""

    ditto_lambda: float = Field(
        default=0.1,
        ge=0,
        description="How close the personal models stay to the global one; 0 leaves each site on "
        "its own.",
    )
    ditto_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Epochs a round for the personal models; as many as for the global one if "
        "empty.",
    )


@flow(name="ditto", retries=2, persist_result=True, result_serializer="json")
@takes(DittoJob)
def ditto(job: DittoJob) -> ModelRef:
    """Trains one model for all sites, and at each site one of its own."""
    local: dict[str, JsonValue] = {"ditto_lambda": job.ditto_lambda}
    if job.ditto_epochs is not None:
        local["ditto_epochs"] = job.ditto_epochs
    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            updates = rounds.ask("ditto", state.model, config=local, same_tensors=True)
            rounds.done({**state.model, **job.aggregate(updates)})
        return rounds.finish()
