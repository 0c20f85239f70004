"""The parameters of a job that trains a scikit-learn estimator. Needs no scikit-learn."""

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from prefect_federated.tasks.relay import OnMissing
from prefect_federated.tasks.tabular import TabularJob


class SklearnJob(TabularJob):
    """The parameters of a scikit-learn job."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "prefect_federated.adapters.sklearn.saved",
        "prefect_federated.adapters.sklearn.preprocessing",
        "sklearn.linear_model",
    )

    executor: str = Field(
        default="prefect_federated.adapters.sklearn.learning:main",
        description="Executor that the sites run; the built-in one trains scikit-learn's own "
        "estimators.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    label: str | None = Field(
        default=None, description="Column to predict; none for clusters and other such estimators."
    )
    estimator: str = Field(
        default="sklearn.linear_model.SGDClassifier",
        description="Import path of an estimator with partial_fit; one of scikit-learn's, unless "
        "the sites' executor allows others.",
        pattern=r"^[A-Za-z_][\w.]*$",
    )
    parameters: dict[str, JsonValue] = Field(
        default={}, description='The estimator\'s parameters, such as {"loss": "log_loss"}.'
    )
    objective: Literal["binary", "multiclass", "regression", "none"] = Field(
        default="binary", description="What the label is; 'none' where there is no label."
    )
    combine: Literal["auto", "exact", "average", "relay"] = Field(
        default="auto",
        description="'exact': naive Bayes from the sites' sums, in one round; 'average': of linear "
        "estimators' coefficients, by rows; 'relay': the estimator goes from site to site, which "
        "all can; 'auto': the first of these that the estimator can.",
    )
    rounds: int = Field(default=10, ge=1, le=1_000_000, description="Rounds to train.")
    local_epochs: int = Field(
        default=1, ge=1, le=100_000, description="Passes over a site's rows in a round."
    )
    batch_size: int = Field(
        default=32, ge=1, le=10_000_000, description="Rows of one call of partial_fit."
    )
    scale: bool = Field(
        default=True,
        description="Whether numeric columns are scaled to mean 0 and variance 1 over all sites.",
    )
    on_missing: OnMissing = Field(
        default="skip",
        description="When a site of a relay does not answer: 'skip' goes on with the next, 'later' "
        "asks it once more at the end of the round, 'fail' ends the job.",
    )
