"""What is counted while rows go by: of a split, or of one group of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from prefect_federated.datasets.kinds import Kind
from prefect_federated.statistics import correlation, moments
from prefect_federated.statistics.correlation import Products, products_of
from prefect_federated.statistics.histograms import counts_with_outer
from prefect_federated.statistics.moments import Floats, Masks, Moments, chunk_of

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES = 1_000
"""Different values of a categorical column that are counted; a column with more has none."""


@dataclass(frozen=True)
class Plan:
    """What to count.

    Args:
        kinds: Column -> kind, of all that are read.
        edges: Column -> the edges of its histogram, without the outer bins.
        bounds: Column -> low and high: values beyond count as the nearer of the two.
        with_moments: Whether all moments are wanted, or only how many values there are.
        with_products: Whether correlations are wanted, beside moments.
    """

    kinds: Mapping[str, Kind]
    edges: Mapping[str, Floats] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    with_moments: bool = True
    with_products: bool = False

    @property
    def numbers(self) -> list[str]:
        """The columns that are read as numbers."""
        return [name for name, kind in self.kinds.items() if kind != "categorical"]

    @property
    def categories(self) -> list[str]:
        """The categorical columns."""
        return [name for name, kind in self.kinds.items() if kind == "categorical"]


class Tally:
    """Counts rows as they go by.

    Args:
        plan: What to count.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows = 0
        self.moments = Moments.none(len(plan.numbers))
        self.products = Products.none(len(plan.numbers)) if plan.with_products else None
        self.histograms = {
            name: np.zeros(len(edges) + 1, np.int64) for name, edges in plan.edges.items()
        }
        self.categories: dict[str, dict[str, int]] = {name: {} for name in plan.categories}
        self.there = dict.fromkeys(plan.categories, 0)
        """Categorical column -> values that are there."""

    def add(self, frame: "pd.DataFrame") -> None:
        """Counts some rows, which have the plan's columns."""
        self.rows += len(frame)
        if self.plan.numbers:
            self._add_numbers(frame)
        for name in self.plan.categories:
            self._add_categories(name, frame[name])

    def _add_numbers(self, frame: "pd.DataFrame") -> None:
        names = self.plan.numbers
        values = np.empty((len(names), len(frame)))
        for place, name in enumerate(names):
            values[place] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
            if name in self.plan.bounds:
                low, high = self.plan.bounds[name]
                row = values[place]
                np.clip(row, low, high, out=row, where=np.isfinite(row))
        add = self._add_moments if self.plan.with_moments else self._add_counts
        is_finite = add(values)
        for place, name in enumerate(names):
            if name in self.plan.edges:
                row, is_there = values[place], is_finite[place]
                there = row if is_there.all() else row[is_there]
                self.histograms[name] += counts_with_outer(there, self.plan.edges[name])

    def _add_moments(self, values: Floats) -> Masks:
        with np.errstate(over="ignore", invalid="ignore"):  # sums too large for a float are told
            chunk = chunk_of(values)
            self.moments = moments.merged(self.moments, chunk.moments)
            if self.products is not None:
                self.products = correlation.merged(self.products, products_of(chunk))
        return chunk.is_finite

    def _add_counts(self, values: Floats) -> Masks:
        is_finite = np.isfinite(values)
        count = is_finite.sum(axis=1).astype(np.float64)
        missing = np.isnan(values).sum(axis=1).astype(np.float64)
        self.moments = replace(
            self.moments,
            count=self.moments.count + count,
            missing=self.moments.missing + missing,
            infinite=self.moments.infinite + (values.shape[1] - count - missing),
        )
        return is_finite

    def _add_categories(self, name: str, column: "pd.Series") -> None:
        codes = column.cat.codes.to_numpy()
        counted = np.bincount(codes[codes >= 0], minlength=len(column.cat.categories))
        self.there[name] += int(counted.sum())
        known = self.categories[name]
        if len(known) > MOST_CATEGORIES:
            return
        for category, count in zip(column.cat.categories, counted.tolist(), strict=True):
            if count:
                known[str(category)] = known.get(str(category), 0) + count

    def has_too_many(self, name: str) -> bool:
        """Whether a categorical column has more different values than are counted."""
        return len(self.categories[name]) > MOST_CATEGORIES
