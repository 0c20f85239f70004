"""Horizontal XGBoost: sites have rows of the same columns, and grow each tree together.

XGBoost's own distributed algorithm, unchanged: each site builds histograms of its rows' gradients,
and all find the best splits in their sum. The model is, byte for byte, what XGBoost's own
collective gives over the same shards.

Source: Chen and Guestrin 2016, "XGBoost: A Scalable Tree Boosting System", sections 3.3 and 4; its
collective calls go through the controller, which sums in XGBoost's own order.
"""

from typing import ClassVar, Literal

from prefect import flow
from pydantic import Field

from prefect_federated.tasks.collective_job import CollectiveJob
from prefect_federated.tasks.collective_training import CollectiveTraining
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.tabular import FittedRef

LEAVES = (
    "Names and kinds of its columns, its categories and classes, and how many rows it has.",
    "For each column the quantiles of its values, from which XGBoost makes bins: with few rows, "
    "these are values of single rows.",
    "For each node of each tree the sums of the gradients and hessians in each bin, which the "
    "server sees by site: in a node with few rows, they tell of single labels.",
    "After each round XGBoost's metrics on its test rows, or on those held out for early stopping, "
    "as sums.",
    "Metrics of the model, and of one of its own rows only, on its test rows.",
)
"""What leaves a site."""


class HistogramJob(CollectiveJob):
    """The parameters of a horizontal XGBoost job."""

    mode: ClassVar[Literal["histogram"]] = "histogram"

    executor: str = Field(
        default="prefect_federated.adapters.xgboost.histogram",
        description="Executor that the sites run.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    group: str | None = Field(
        default=None, description="Ranking: the column that names each row's query."
    )


@flow(name="xgboost-histogram", retries=2, persist_result=True, result_serializer="json")
@takes(HistogramJob)
def xgboost_histogram(job: HistogramJob) -> FittedRef:
    """Trains one booster on the rows of all sites by XGBoost's own distributed algorithm."""
    with federation(job) as fed:
        training = CollectiveTraining(fed, job, group=job.group)
        training.agree()
        training.train()
        training.measure()
        return training.publish(LEAVES)
