"""What a site was asked for, as its protection must know it."""

from dataclasses import dataclass
from typing import Literal

SiteTaskKind = Literal["describe", "count", "refine"]


@dataclass(frozen=True)
class Request:
    """One site task of a statistics job.

    Args:
        dataset: The name of the dataset: budgets and earlier releases are kept by it.
        kind: Of the site task.
        splits: Which were asked for; all if empty.
        features: Columns that were named; all if None.
        group_by: The column by whose values rows are grouped.
        job: Id of the job, for the site's own records.
    """

    dataset: str
    kind: SiteTaskKind = "describe"
    splits: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None
    group_by: str | None = None
    job: str = ""
