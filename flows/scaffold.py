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

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from prefect import flow
from pydantic import Field

from prefect_federated.aggregators import weighted_mean
from prefect_federated.control_variates import joined, server_step
from prefect_federated.messages import JsonValue, Reply, Tensor, Tensors, Update
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


@flow(name="scaffold", retries=2, persist_result=True, result_serializer="json")
@takes(ScaffoldJob)
def scaffold(job: ScaffoldJob) -> ModelRef:
    """Trains one model on the data of many sites, with control variates against client drift."""
    with federation(job) as fed:
        rounds = Rounds(fed, job)
        for state in rounds:
            control = state.extra.get("control", {})  # nothing yet: zero
            counted = Counted.of(state.extra.get("counted", {}), rounds.number, job.weighting)
            config: dict[str, JsonValue] = {"option": job.option, "counted": {**counted.rounds}}
            updates = rounds.ask(
                "scaffold", joined(state.model, control), config=config, late_weight=0,
                same_tensors=bool(control),
            )  # fmt: skip
            mean = weighted_mean(counted.counting(updates))
            share = counted.share_of(len(fed.hub.sites))
            model, control = server_step(state.model, control, mean, lr=job.server_lr, share=share)
            rounds.done(model, {"control": control, "counted": counted.as_tensors()})
        return rounds.finish()


class Counted:
    """Whose update was counted last in which round, and with which weight.

    Args:
        rounds: Site -> the last round whose update was counted.
        weights: Site -> the weight of that update.
        number: The round that is under way.
        weighting: "uniform", or "examples".
    """

    def __init__(
        self, rounds: dict[str, int], weights: dict[str, float], number: int, weighting: str
    ) -> None:
        self.rounds: dict[str, JsonValue] = {**rounds}
        self._weights = weights
        self._number = number
        self._is_uniform = weighting == "uniform"

    @staticmethod
    def of(tensors: Tensors, number: int, weighting: str) -> "Counted":
        """Returns what `as_tensors` has kept."""
        rounds = {site: int(kept[0]) for site, kept in tensors.items()}
        weights = {site: float(kept[1]) for site, kept in tensors.items()}
        return Counted(rounds, weights, number, weighting)

    def counting(self, replies: Iterable[Reply]) -> Iterator[Reply]:
        """Passes replies on with their weights in the mean, and notes whose they are."""
        for reply in replies:
            if isinstance(reply, Update):
                reply = replace(reply, weight=1.0) if self._is_uniform else reply
                self.rounds[reply.site] = self._number
                self._weights[reply.site] = reply.weight
            yield reply
            del reply

    def share_of(self, sites: int) -> float:
        """Returns the weight of the round's updates over that of all sites (|S| / N)."""
        known = sum(self._weights.values())
        everyone = known + (sites - len(self._weights)) * known / len(self._weights)
        here = [site for site, number in self.rounds.items() if number == self._number]
        return sum(self._weights[site] for site in here) / everyone

    def as_tensors(self) -> dict[str, Tensor]:
        """Returns the same as tensors: site -> [round, weight]."""
        return {site: np.array([self.rounds[site], self._weights[site]]) for site in self.rounds}
