"""What a statistics job says: the schema of its JSON, and of what each site sends.

A number is null where it is not known; why is in `withheld` (a site keeps it back) or in the counts
(there are no values). Nothing else makes a number disappear.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.datasets.kinds import Kind

SCHEMA_VERSION: Literal[1] = 1
OVERALL = "all sites"
"""The name of the federation beside the sites' in tables and pictures."""


class Part(BaseModel):
    """What all parts of the schema have in common: no unknown fields, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Withheld(Part):
    """Something that a site does not release, and why."""

    what: str = Field(description="'everything', or a number such as 'mean' or 'histogram'.")
    reason: str = Field(description="As a person reads it: '11 rows < minimum 20'.")


class Histogram(Part):
    """Counts of values between edges; the last bin includes its right edge, as numpy's does."""

    edges: list[float] = Field(description="Rising; one more than there are counts.")
    counts: list[float | None] = Field(
        description="Values a bin; null where the site withholds it. Whole numbers unless noised."
    )


class Quantile(Part):
    """A quantile and how far it may be off: the true one lies in [lower, upper]."""

    q: float = Field(ge=0, le=1)
    value: float | None
    lower: float | None = None
    upper: float | None = None


class Summary(Part):
    """One column at one site, or over all sites that released it.

    Datetimes are in seconds since 1970, UTC; booleans are 0 and 1.
    """

    count: float | None = Field(default=None, description="Values that are there and finite.")
    missing: float | None = Field(default=None, description="Values that are not there.")
    infinite: float | None = Field(default=None, description="Values that are +inf or -inf.")
    sum: float | None = None
    mean: float | None = None
    mean_rest: float | None = Field(
        default=None,
        description="What rounding has left off the mean: so variances merge to the last digit. "
        "Only in what a site sends; null with the mean, and where there is noise.",
    )
    variance: float | None = Field(default=None, description="With n - 1, as pandas has it.")
    std: float | None = None
    min: float | None = Field(default=None, description="Noised, unless the site says exact.")
    max: float | None = None
    histogram: Histogram | None = None
    quantiles: list[Quantile] = []
    categories: dict[str, float | None] | None = Field(
        default=None, description="Rows a category; null where the site withholds it."
    )
    other_categories: float | None = Field(
        default=None, description="Rows in categories that are not named one by one."
    )
    noise: str | None = Field(
        default=None, description="What noise is in these numbers: 'Laplace, epsilon 0.5'."
    )
    withheld: list[Withheld] = []


class Correlation(Part):
    """Pearson correlations of columns, over rows where both are there; null where not known."""

    columns: list[str]
    values: list[list[float | None]] = Field(description="`(n_columns, n_columns)`, symmetric.")
    withheld: list[Withheld] = []


class Feature(Part):
    """One column: over all sites, and at each."""

    kind: Kind
    overall: Summary
    by_site: dict[str, Summary] = Field(description="Only sites that have the column.")
    without: list[str] = Field(default=[], description="Sites that do not have the column.")
    stands_out: list[str] = Field(
        default=[], description="Plain sentences on sites whose values differ from the others'."
    )


class SplitAtSite(Part):
    """How much of a split a site has."""

    rows: float | None
    withheld: list[Withheld] = []


class Split(Part):
    """One split of the dataset, such as 'train', or one group of it."""

    rows: float | None = Field(description="Over all sites that released theirs.")
    sites: dict[str, SplitAtSite]
    features: dict[str, Feature]
    correlation: Correlation | None = Field(default=None, description="Over all sites.")
    correlation_by_site: dict[str, Correlation] = {}
    groups: dict[str, "Split"] = Field(
        default={}, description="By the value of the column that was grouped by."
    )


class SiteState(Part):
    """A site that was asked: whether it answered."""

    state: Literal["answered", "absent", "failed"]
    reason: str = ""
    released: datetime | None = Field(
        default=None, description="When its numbers were computed, if not in this run."
    )


class Drift(Part):
    """How a column at a site differs from the run before."""

    split: str
    feature: str
    site: str = Field(description=f"A site's name, or '{OVERALL}'.")
    psi: float | None = Field(description="Population stability index.")
    ks: float | None = Field(description="Kolmogorov-Smirnov distance on the histograms, 0 to 1.")
    is_past_threshold: bool


class Comparison(Part):
    """A run beside the last one of the same name."""

    run: str
    created: datetime
    psi_threshold: float
    ks_threshold: float
    drifts: list[Drift] = Field(description="The largest first.")
    notes: list[str] = Field(
        default=[], description="What could not be compared, such as a site that was absent."
    )


class Statistics(Part):
    """The result of a statistics job."""

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: str
    name: str = Field(description="What runs are compared by: the deployment's name.")
    run: str = Field(description="Id of the flow run.")
    created: datetime
    sites: dict[str, SiteState]
    splits: dict[str, Split]
    group_by: str | None = None
    withheld: list[str] = Field(
        default=[],
        description="All that sites withhold, as lines: 'site-4: withheld, 11 rows < minimum 20'.",
    )
    notes: list[str] = Field(default=[], description="What a person should know, as sentences.")
    compared: Comparison | None = None

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of it."""
        from prefect_federated.statistics.notebook import cell_html

        return cell_html(self)


# What one site sends


class ColumnAtSite(Part):
    """One column of a site: what it is, and its numbers after protection."""

    kind: Kind
    summary: Summary


class SplitFromSite(Part):
    """One split, or one group of it, of one site."""

    rows: float | None
    columns: dict[str, ColumnAtSite]
    co_moments: "CoMoments | None" = None
    groups: dict[str, "SplitFromSite"] = {}
    withheld: list[Withheld] = []


class CoMoments(Part):
    """Pairwise sums from which correlations over all sites are merged (Chan et al. 1979).

    For columns i, j over the rows where both are there: `n[i][j]`, the mean of i there
    `mean[i][j]`, and `m[i][j]`, the sum of products of deviations; `m2[i][j]` is the sum of squared
    deviations of i there. Null where withheld.
    """

    columns: list[str]
    n: list[list[float | None]]
    mean: list[list[float | None]]
    m2: list[list[float | None]]
    m: list[list[float | None]]
    mean_rest: list[list[float | None]] | None = Field(
        default=None, description="What rounding has left off `mean`, as in `Summary`."
    )
    withheld: list[Withheld] = []


class FromSite(Part):
    """What one site answers to one site task of a statistics job."""

    schema_version: Literal[1] = SCHEMA_VERSION
    splits: dict[str, SplitFromSite]
    released: datetime | None = Field(
        default=None, description="When the numbers were computed, if they are an earlier release."
    )
    withheld: list[Withheld] = []


SiteAnswers: TypeAlias = Mapping[str, FromSite]
