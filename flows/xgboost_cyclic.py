"""XGBoost in a cycle: the model goes from site to site, and each boosts it further.

A round is one cycle. Nothing is averaged: the order of the sites matters. The result is what
`xgboost.train(..., xgb_model=...)` gives on one site's rows after the other's.
"""

from typing import Literal

from prefect import flow
from pydantic import Field

from prefect_federated.messages import SiteFailure
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.relay import OnMissing
from prefect_federated.tasks.tabular import FittedRef
from prefect_federated.tasks.tree_job import TreeJob
from prefect_federated.tasks.tree_rounds import TreeRounds

LEAVES = (
    "Names and kinds of its columns, its categories and classes, and how many rows it has.",
    "Its trees, within the model that goes on to the next site: the columns and values at which "
    "they split, and for each node the sum of the second derivatives of the loss over the rows "
    "there, and the gain. The values at splits are those of single rows, or near them.",
    "Metrics of the model, and of one of its own rows only, on its test rows.",
)


class XGBoostCyclicJob(TreeJob):
    """The parameters of a cyclic XGBoost job."""

    mode = "cyclic"

    order: Literal["given", "shuffled"] = Field(
        default="given",
        description="Order of the sites in a round: by name, or 'shuffled' anew in each round.",
    )
    on_missing: OnMissing = Field(
        default="skip",
        description="When a site does not answer: 'skip' goes on with the next, 'later' asks it "
        "once more at the end of the round, 'fail' ends the job.",
    )
    executor: str = Field(
        default="prefect_federated.adapters.xgboost.cyclic",
        description="Executor that the sites run; the built-in one grows XGBoost's trees.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )


@flow(name="xgboost-cyclic", retries=2, persist_result=True, result_serializer="json")
@takes(XGBoostCyclicJob)
def xgboost_cyclic(job: XGBoostCyclicJob) -> FittedRef:
    """Trains one XGBoost model at one site after another, round after round."""
    with federation(job) as fed:
        trees = TreeRounds(fed, job)
        for number in trees:
            relay = fed.relay(
                "train", trees.state.model, sites=trees.chosen, round=number, order=job.order,
                on_missing=job.on_missing, config=trees.config(), same_tensors=False,
            )  # fmt: skip
            answered = [each.site for each in relay if not isinstance(each, SiteFailure)]
            trees.done(trees.checked(relay.model, answered[-1]), answered)
        return trees.finish(LEAVES)
