"""SCAFFOLD: control variates correct what drives the sites' models apart.

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
Algorithm 1. Each round the server sends x and c (line 3); a site steps along g_i(y) - c_i + c
(line 10), renews its c_i by option I or II (line 12; equation 4) and sends y - x and c_i^+ - c_i
(line 13); the server takes (lines 16 and 17)

    x <- x + eta_g / |S| sum_{i in S} (y_i - x)
    c <- c + 1 / N sum_{i in S} (c_i^+ - c_i)

A site's c_i stays there. It counts from the round whose update the server has counted, which the
server says with each task (`counted`): an update that got lost, or was done twice, leaves
c = 1 / N sum_i c_i as it is. We send y_i in the place of y_i - x, and average buffers.
"""

from typing import Literal

from prefect import flow
from pydantic import Field, model_validator

from prefect_federated.aggregators import weighted_mean
from prefect_federated.control_variates import joined, server_step, zeros_for
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.counted import Counted
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.rounds import Rounds, TrainingJob
from prefect_federated.tasks.snapshots import ModelRef


class ScaffoldJob(TrainingJob):
    """The parameters of a SCAFFOLD job."""

    option: Literal[1, 2] = Field(
        default=2,
        description="How a site renews its control variate: 1, the gradient of all its data at the "
        "global model; 2, the mean of the gradients on its way, which costs nothing.",
    )
    server_lr: float = Field(
        default=1.0, gt=0, description="The server's step along the mean change (eta_g)."
    )
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform",
        description="Weight of the sites in both means: 'uniform' as in the paper, or their "
        "numbers of 'examples' as in FedAvg.",
    )

    @model_validator(mode="after")
    def _sites_keep_what_they_send(self) -> "ScaffoldJob":
        for spec in self.filters:
            if spec.filter in ("clip", "top_k"):
                raise ValueError(
                    f"the filter {spec.filter!r} changes the sites' control variates on their way, "
                    "and SCAFFOLD does not converge then; leave it out, or take fedavg or fedopt"
                )
        return self


@flow(name="scaffold", retries=2, persist_result=True, result_serializer="json")
@takes(ScaffoldJob)
def scaffold(job: ScaffoldJob) -> ModelRef:
    """Trains one model on the data of many sites, with control variates against client drift."""
    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            control = state.extra.get("control") or zeros_for(state.model)
            counted = Counted.of(state.extra, rounds.number, job.weighting)
            config: dict[str, JsonValue] = {"option": job.option, "counted": {**counted.rounds}}
            updates = rounds.ask(
                "scaffold", joined(state.model, control), config=config, late_weight=0,
                same_tensors=True,
            )  # fmt: skip
            mean = weighted_mean(counted.counting(updates))
            kept, share = counted.shares(len(fed.hub.sites))
            model, control = server_step(
                state.model, control, mean, job.server_lr, share, kept, counted.buffers
            )
            rounds.done(model, {"control": control, **counted.as_extra()})
        return rounds.finish()
