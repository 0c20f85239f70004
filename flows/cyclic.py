"""Cyclic weight transfer: the model goes from site to site, and each trains it further.

Source: Chang et al. 2018, "Distributed deep learning networks among institutions for medical
imaging", cyclical weight transfer. A round is one cycle. Nothing is averaged: the order of the
sites matters, and the last one's data weigh most.
"""

from typing import Literal

from prefect import flow
from pydantic import Field

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.relay import OnMissing
from prefect_federated.tasks.rounds import Rounds, TrainingJob
from prefect_federated.tasks.snapshots import ModelRef


class CyclicJob(TrainingJob):
    """The parameters of a cyclic job."""

    order: Literal["given", "shuffled"] | list[str] = Field(
        default="given",
        description="Order of the sites in a round: 'given' (by name, or as `sites` has them), "
        "'shuffled' anew in each round, or a list of their names.",
    )
    on_missing: OnMissing = Field(
        default="skip",
        description="When a site does not answer: 'skip' goes on with the next, 'later' asks it "
        "once more at the end of the round, 'fail' ends the job.",
    )


@flow(name="cyclic", retries=2, persist_result=True, result_serializer="json")
@takes(CyclicJob)
def cyclic(job: CyclicJob) -> ModelRef:
    """Trains one model at one site after another, round after round."""
    with federation(job) as fed:
        rounds = Rounds(fed, job, all_alike=False)
        for state in rounds:
            relay = fed.relay(
                "train", state.model, round=rounds.number, sites=rounds.chosen, order=job.order,
                on_missing=job.on_missing, same_tensors=True,
            )  # fmt: skip
            for reply in rounds.reading(relay):
                del reply  # the next site has its tensors
            rounds.done({**state.model, **relay.model})
        return rounds.finish()
