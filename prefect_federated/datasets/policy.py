"""What a site lets out of its datasets: the `privacy` section of its `datasets.yaml`.

Nobody but the site sets it. Where two sections speak of one thing, the stricter one wins. What each
rule stops, and what it does not, is in docs/privacy-of-statistics.md.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Bounds = tuple[float, float]

_SMALLER = ("epsilon", "delta", "budget_epsilon", "budget_delta")
_LARGER = (
    "minimum_rows",
    "small_cell",
    "small_missing",
    "rows_per_bin",
    "rows_per_category",
    "minmax_noise",
    "changed_rows",
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Noise(_Section):
    """Random noise on counts and sums, and how much of it a site spends in all.

    Epsilon and delta are those of differential privacy with respect to one row. Each site task that
    computes new numbers spends `epsilon` and `delta` of the dataset's budget, shared by all numbers
    that it releases; to give the same numbers again costs nothing.
    """

    mechanism: Literal["laplace", "gaussian"] = Field(
        default="laplace", description="Gaussian noise is smaller where there are many numbers."
    )
    epsilon: float = Field(
        default=1.0, gt=0, le=100, description="For one site task: small is private, and noisy."
    )
    delta: float = Field(
        default=1e-6,
        gt=0,
        lt=0.1,
        description="For one site task: less than one in the number of rows. Gaussian noise needs "
        "it, and so do names of categories with either mechanism.",
    )
    budget_epsilon: float = Field(
        default=10.0, gt=0, le=10_000, description="For all jobs together, a dataset."
    )
    budget_delta: float = Field(
        default=1e-4, gt=0, lt=1, description="For all jobs together, a dataset."
    )
    period_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Days after which what was spent is forgotten; never if there is none.",
    )

    def stricter(self, other: "Noise") -> "Noise":
        """Returns the smaller budgets over the longer period; Laplace noise if either says so.

        Where only one of the two says something, that counts.
        """
        said = _said(self, other)
        chosen = {name: min(values) for name, values in said.items() if name in _SMALLER}
        if "mechanism" in said:
            chosen["mechanism"] = max(said["mechanism"])  # "laplace" comes after "gaussian"
        if "period_days" in said:
            periods = said["period_days"]
            chosen["period_days"] = None if None in periods else max(periods)
        return Noise.model_validate(chosen)


class PrivacyPolicy(_Section):
    """What may leave a dataset, and how exact.

    >>> strict = PrivacyPolicy(minimum_rows=50).stricter(PrivacyPolicy(small_cell=10))
    >>> strict.minimum_rows, strict.small_cell
    (50, 10)
    """

    minimum_rows: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="A split, group or column with fewer values releases nothing.",
    )
    small_cell: int = Field(
        default=5,
        ge=0,
        le=1_000_000,
        description="Categories and histogram bins with fewer rows (but some) are withheld, and "
        "others with them where the small ones could be computed. 0 or 1: none.",
    )
    small_missing: int = Field(
        default=5,
        ge=0,
        le=1_000_000,
        description="Where fewer values (but some) are missing or infinite, their number is "
        "withheld, and with it the column's count, sum, mean and variance, from which it could be "
        "computed. 0 or 1: never.",
    )
    rows_per_bin: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="A histogram has at most one bin for so many values.",
    )
    rows_per_category: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="A column that has more than one category for so many values, such as a name "
        "or free text, releases none, and nothing is grouped by it.",
    )
    minmax_noise: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Minima are lowered and maxima raised by up to this share of the range. 0: "
        "exact.",
    )
    changed_rows: int = Field(
        default=20,
        ge=0,
        le=1_000_000,
        description="While fewer rows (but some) have changed since a release, that release is "
        "given again and nothing new of the same column. 0 or 1: each job has new numbers.",
    )
    allowed_columns: frozenset[str] | None = Field(
        default=None, description="The only columns that may be used; all if there is no list."
    )
    forbidden_columns: frozenset[str] = Field(
        default=frozenset(), description="Columns that may not be used, in upper or lower case."
    )
    bounds: dict[str, Bounds] = Field(
        default={},
        description="Column to [low, high], known without a look at the data: values beyond are "
        "counted as the nearer of the two. Sums with noise need it.",
    )
    raw_rows: bool = Field(
        default=False,
        description="Whether rows themselves may leave, as the support vectors of a model do.",
    )
    training: bool | None = Field(
        default=None,
        description="Whether models may be trained on it, which no noise protects. If left out: "
        "yes, unless `noise` is asked for.",
    )
    noise: Annotated[Noise | None, Field(description="Differential privacy; none if left out.")] = (
        None
    )

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        for column, (low, high) in self.bounds.items():
            if not low < high:
                raise ValueError(
                    f"bounds of column {column!r} are [{low:g}, {high:g}]; write the lower one "
                    "first, and two different ones."
                )
        return self

    def stricter(self, other: "PrivacyPolicy") -> "PrivacyPolicy":
        """Returns the stricter of each rule; where only one of the two says something, that counts.

        Raises:
            ValueError: the two have bounds of one column that do not overlap.
        """
        said = _said(self, other)
        chosen = {name: max(values) for name, values in said.items() if name in _LARGER}
        lists = [names for names in said.get("allowed_columns", []) if names is not None]
        if lists:
            chosen["allowed_columns"] = frozenset.intersection(*lists)
        chosen["forbidden_columns"] = self.forbidden_columns | other.forbidden_columns
        chosen["bounds"] = _common(self.bounds, other.bounds)
        for name in ("raw_rows", "training"):
            allowed = [each for each in said.get(name, []) if each is not None]
            if allowed:
                chosen[name] = all(allowed)
        noises = [noise for noise in (self.noise, other.noise) if noise is not None]
        if noises:
            chosen["noise"] = noises[0].stricter(noises[-1])
        return PrivacyPolicy.model_validate(chosen)

    def allowed(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Returns the columns that may be used, in the order given."""
        forbidden = {name.casefold() for name in self.forbidden_columns}
        return tuple(
            name
            for name in columns
            if name.casefold() not in forbidden
            and (self.allowed_columns is None or name in self.allowed_columns)
        )

    def bins_for(self, rows: float, asked: int) -> int:
        """Returns how many bins a histogram of so many values may have: 0 if there may be none.

        >>> PrivacyPolicy(rows_per_bin=10).bins_for(123, asked=20)
        12
        """
        if rows < max(self.minimum_rows, 1):
            return 0
        return max(1, min(asked, int(rows // self.rows_per_bin)))


def _said(one: _Section, other: _Section) -> dict[str, list[Any]]:
    """Returns what the two say themselves, not by default, of each rule."""
    names = one.model_fields_set | other.model_fields_set
    both = (one, other)
    return {
        name: [getattr(each, name) for each in both if name in each.model_fields_set]
        for name in names
    }


def _common(these: dict[str, Bounds], those: dict[str, Bounds]) -> dict[str, Bounds]:
    bounds = {**these, **those}
    for column in these.keys() & those.keys():
        low = max(these[column][0], those[column][0])
        high = min(these[column][1], those[column][1])
        if not low < high:
            raise ValueError(
                f"bounds of column {column!r}: {list(these[column])} and {list(those[column])} do "
                "not overlap. Write bounds that agree."
            )
        bounds[column] = (low, high)
    return bounds
