"""Vertical XGBoost: sites have different columns of the same rows, and one has the label.

The rows are matched by a key, of which hashes leave the sites. Then XGBoost's own column split:
each site finds the best split among its columns, and all take the best of all. The model is that of
the columns put together.

Source: Chen and Guestrin 2016, "XGBoost: A Scalable Tree Boosting System", section 3.3; Cheng et
al. 2021, "SecureBoost", section 3, for the setting. Unlike there, gradients are not encrypted: they
go from the site with the label to the others, through the server.
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
    "Names and kinds of its columns, and how many rows it has.",
    "A hash of each row's key, under a salt that the sites share and the server does not have; and "
    "so how many rows it has in common with the others.",
    "From the site with the label: each row's gradient and hessian in each round, to all other "
    "sites and through the server. They tell the label to whoever has them.",
    "From the others: for each node the best split of its columns, and which rows go left there.",
    "From the site with the label: metrics of the model, and of one of its own columns only, on "
    "the test rows.",
)
"""What leaves a site."""
NOTES = (
    "The model's columns are those of all sites, in the order given here: whoever predicts has to "
    "have all of them for a row.",
)


class VerticalJob(CollectiveJob):
    """The parameters of a vertical XGBoost job."""

    mode: ClassVar[Literal["vertical"]] = "vertical"

    executor: str = Field(
        default="prefect_federated.adapters.xgboost.vertical",
        description="Executor that the sites run.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    objective: Literal["binary", "multiclass", "regression", "poisson"] = Field(
        default="binary", description="What the label is."
    )
    on_lost: Literal["wait"] = Field(
        default="wait",
        description="When a site is lost, all go back to the last snapshot and wait until it is "
        "back: each site's columns are needed.",
    )
    key: str = Field(
        min_length=1, description="Column by which rows of different sites are matched."
    )


@flow(name="xgboost-vertical", retries=2, persist_result=True, result_serializer="json")
@takes(VerticalJob)
def xgboost_vertical(job: VerticalJob) -> FittedRef:
    """Trains one booster on the columns of all sites, of the rows that all of them have."""
    with federation(job) as fed:
        training = CollectiveTraining(fed, job, key=job.key)
        training.agree()
        training.label_first()
        training.match()
        training.train()
        training.measure(at_each_site=False)
        return training.publish(LEAVES, NOTES)
