"""The result as a pandas frame, for programs. Installed with the extra `statistics`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prefect_federated.statistics.schema import OVERALL, Feature, Split, Statistics, Summary

if TYPE_CHECKING:
    import pandas

COLUMNS: Mapping[str, str] = {
    "split": "Name of the split, such as 'train'.",
    "group": "Value of the column that was grouped by; missing for the whole split.",
    "feature": "Name of the column of the data.",
    "kind": "numeric, boolean, categorical, datetime or empty.",
    "site": f"Name of the site, or '{OVERALL}'.",
    "count": "Values that are there and finite.",
    "missing": "Values that are not there.",
    "infinite": "Values that are +inf or -inf.",
    "sum": "Sum of the values.",
    "mean": "Their mean; of datetimes, in seconds since 1970, UTC, as all numbers of theirs.",
    "variance": "With n - 1.",
    "std": "Square root of the variance.",
    "min": "Smallest value, noised unless the site says exact.",
    "max": "Largest value, noised unless the site says exact.",
    "histogram": "A pair of lists, edges and counts; None where there is none.",
    "categories": "A dict, category -> rows; None for what has no categories.",
    "noise": "What noise is in the numbers; empty for none.",
    "withheld": "What the site keeps back, and why; empty for nothing.",
}
"""Columns of the frame -> what they hold. Each quantile that was asked for has three more: `q0.25`,
`q0.25_lower` and `q0.25_upper`; the true one lies between the last two."""

_NUMBERS = ("count", "missing", "infinite", "sum", "mean", "variance", "std", "min", "max")


def as_frame(result: Statistics) -> "pandas.DataFrame":
    """Returns one row a split, group, feature and site, "all sites" among them.

    Numbers that are not known are missing; `withheld` says which ones a site keeps back.

    Args:
        result: What a statistics job came to.
    """
    import pandas

    rows = [row for name, split in result.splits.items() for row in _rows(name, None, split)]
    asked = sorted({quantile.q for _, each in rows for quantile in each.quantiles})
    names = [f"q{q:g}{end}" for q in asked for end in ("", "_lower", "_upper")]
    frame = pandas.DataFrame(
        [{**start, **_numbers(each)} for start, each in rows], columns=[*COLUMNS, *names]
    )
    numbers = [*_NUMBERS, *names]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _rows(
    name: str, group: str | None, split: Split
) -> Iterator[tuple[dict[str, object], Summary]]:
    for feature_name, feature in split.features.items():
        for site, each in _summaries(feature).items():
            start: dict[str, object] = {
                "split": name,
                "group": group,
                "feature": feature_name,
                "kind": feature.kind,
                "site": site,
            }
            yield start, each
    for value, there in split.groups.items():
        yield from _rows(name, value, there)


def _summaries(feature: Feature) -> dict[str, Summary]:
    return {OVERALL: feature.overall, **feature.by_site}


def _numbers(each: Summary) -> dict[str, object]:
    found: dict[str, object] = {name: getattr(each, name) for name in _NUMBERS}
    found["histogram"] = each.histogram and (each.histogram.edges, each.histogram.counts)
    found["categories"] = each.categories
    found["noise"] = each.noise or ""
    found["withheld"] = "; ".join(f"{line.what}: {line.reason}" for line in each.withheld)
    for quantile in each.quantiles:
        name = f"q{quantile.q:g}"
        found |= {
            name: quantile.value,
            f"{name}_lower": quantile.lower,
            f"{name}_upper": quantile.upper,
        }
    return found
