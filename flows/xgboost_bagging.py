"""XGBoost by tree bagging: in each round all sites grow trees from the global model, at once.

Source: Roth et al. 2022, "NVIDIA FLARE: Federated Learning from Simulation to Real-World", Figure 5
(a "boosting of forests"). The trees of a round are one boosting round of an ordinary booster, each
site's scaled by its share of the rows.
"""

from prefect import flow
from pydantic import Field

from prefect_federated.adapters.xgboost.merge import Forest, Grown
from prefect_federated.messages import SiteFailure
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.tabular import FittedRef
from prefect_federated.tasks.tree_job import TreeJob
from prefect_federated.tasks.tree_rounds import TreeRounds

LEAVES = (
    "Names and kinds of its columns, its categories and classes, and how many rows it has.",
    "Its trees: the columns and values at which they split, and for each node the sum of the "
    "second derivatives of the loss over the rows there, and the gain. The values at splits are "
    "those of single rows, or near them.",
    "Metrics of the model, and of one of its own rows only, on its test rows.",
)


class XGBoostBaggingJob(TreeJob):
    """The parameters of a tree bagging job."""

    mode = "bagging"

    executor: str = Field(
        default="prefect_federated.adapters.xgboost.bagging",
        description="Executor that the sites run; the built-in one grows XGBoost's trees.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )


@flow(name="xgboost-bagging", retries=2, persist_result=True, result_serializer="json")
@takes(XGBoostBaggingJob)
def xgboost_bagging(job: XGBoostBaggingJob) -> FittedRef:
    """Trains one XGBoost model from the trees that all sites grow, round by round."""
    with federation(job) as fed:
        trees = TreeRounds(fed, job)
        forest = Forest(trees.state.model)
        for number in trees:
            replies = fed.broadcast(
                "train", trees.state.model, sites=trees.chosen, round=number,
                config=trees.config(), late_weight=0, same_tensors=False,
            )  # fmt: skip
            grown = [Grown.of(each) for each in replies if not isinstance(each, SiteFailure)]
            trees.measured(replies.report.metrics if replies.report else {})
            forest.append(grown, trees.features)
            trees.done(forest.tensors(), [each.site for each in grown])
        return trees.finish(LEAVES)
