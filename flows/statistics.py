"""Federated statistics: what data the sites hold, before any training and without a row leaving.

Three questions, each answered by the sites' built-in executor: `describe` (rows, moments,
categories), `count` (histograms on a range that all share), `refine` (counts between ever closer
edges, until the quantiles are known well enough, or the sites' policies allow no finer).
"""

from typing import Annotated, ClassVar

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import AfterValidator, Field, FiniteFloat

from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import JobParameters, Quorum, takes
from prefect_federated.tasks.statistics import Survey
from prefect_federated.tasks.statistics_result import (
    StatisticsRef,
    message_of,
    publish,
)


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range from {ends[0]:g} to {ends[1]:g}; write the lower one first")
    return ends


class StatisticsJob(JobParameters):
    """The parameters of a statistics job."""

    imports: ClassVar[tuple[str, ...]] = (
        "prefect_federated.statistics.report",
        "prefect_federated.statistics.summary",
    )

    dataset: str = Field(
        min_length=1, description="The dataset's name, as the sites' datasets.yaml has it."
    )
    splits: list[str] | None = Field(
        default=None, description="Splits such as train and test; all if empty."
    )
    features: list[str] | None = Field(default=None, description="Columns; all if empty.")
    bins: int = Field(default=20, ge=1, le=500, description="Bins of a histogram.")
    ranges: dict[str, Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)]] = Field(
        default={},
        description='Ranges of histograms, such as {"age": [0, 100]}; of other columns, from the '
        "sites' smallest and largest values.",
    )
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.05, 0.25, 0.5, 0.75, 0.95], description="Quantiles, from 0 to 1."
    )
    group_by: str | None = Field(
        default=None, description="A column of categories: all numbers for each of its values, too."
    )
    correlation: bool = Field(default=True, description="Whether correlations are computed.")
    psi_threshold: float = Field(
        default=0.2,
        ge=0,
        description="Population stability index against the run before, from which a feature has "
        "drifted.",
    )
    ks_threshold: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Kolmogorov-Smirnov distance from the run before, from which a feature has "
        "drifted.",
    )
    name: str | None = Field(
        default=None,
        description="Runs of one name are compared with each other; the deployment's name and the "
        "dataset if empty.",
    )
    absent_after_s: float = Field(
        default=30,
        ge=0,
        description="Seconds to wait for the other sites once min_sites have joined; those that "
        "are not there by then are absent, and the run goes on.",
    )
    executor: str = Field(
        default="prefect_federated.statistics.site",
        description="Executor that the sites run; the built-in one computes statistics.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )
    min_sites: int | None = Field(
        default=1,
        ge=1,
        description="Sites that must have joined before the first question. If empty: all of "
        "`sites`, or where that is empty too, all sites that are online.",
    )
    quorum: Quorum = Field(
        default=0.01,
        description="Sites that must answer: up to 1 a share of those that joined, rounded up; "
        "above 1 a count. By default one is enough, and the others are shown as absent or failed.",
    )


@flow(name="statistics", retries=2, persist_result=True, result_serializer="json")
@takes(StatisticsJob, without=("seed", "late_weight"))
def statistics(job: StatisticsJob) -> State[StatisticsRef]:
    """Computes statistics of a dataset at all sites, and makes a report of them."""
    with federation(job) as fed:
        survey = Survey(fed, job)
        survey.wait_for_sites()
        survey.describe()
        survey.count()
        while survey.refine():
            pass
        result = survey.result()
    reference = publish(result, survey.earlier, job.psi_threshold, job.ks_threshold)
    return Completed(data=reference, message=message_of(reference))
