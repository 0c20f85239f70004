"""What comes of an evaluation at all sites: models x sites x metrics, as JSON and as tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_federated.messages import JsonValue, SiteFailure

GLOBAL = "global model"
"""What the global model is called beside the sites' names."""

_LISTED = 100  # failures that the tables' page lists at most


@dataclass(frozen=True)
class Measured:
    """What a site has measured of a model.

    Args:
        metrics: Name -> value.
        weight: The weight of these in a mean over the sites, such as the number of test examples.
    """

    metrics: Mapping[str, float]
    weight: float


@dataclass(frozen=True)
class ModelRow:
    """One model at all sites.

    Args:
        site: The site that trained it; None for the global model.
        round: The round in which the site's update counted; for the global model, the last round
            that is in it. 0 where that is not known.
        cells: Site -> what it has measured, or why it has not.
    """

    site: str | None
    round: int
    cells: Mapping[str, Measured | SiteFailure]

    @property
    def name(self) -> str:
        """What the model is called in tables and pictures."""
        return GLOBAL if self.site is None else self.site

    def mean(self, metric: str) -> float:
        """Returns the mean over the sites that have measured it, by weight; NaN if none has."""
        found = [cell for cell in self.cells.values() if isinstance(cell, Measured)]
        found = [cell for cell in found if metric in cell.metrics and cell.weight > 0]
        total = math.fsum(cell.weight for cell in found)
        if not total:
            return math.nan
        return math.fsum(cell.weight / total * cell.metrics[metric] for cell in found)


@dataclass(frozen=True)
class Matrix:
    """How each model does at each site.

    Args:
        rows: The global model, then the sites' by name.
        sites: The sites at which they were evaluated, by name.
        without: Sites that have no model, because no update of theirs counted.
    """

    rows: tuple[ModelRow, ...]
    sites: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that a site has measured, sorted."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        return sorted(
            {name for cell in cells if isinstance(cell, Measured) for name in cell.metrics}
        )

    @property
    def failures(self) -> list[tuple[ModelRow, SiteFailure]]:
        """The cells that are empty: of which model, and where and why."""
        return [
            (row, cell)
            for row in self.rows
            for cell in (row.cells[site] for site in self.sites)
            if isinstance(cell, SiteFailure)
        ]

    def values(self, metric: str) -> NDArray[np.float64]:
        """Returns a metric, `(n_models, n_sites)`, float64; NaN where there is no value."""
        found = np.full((len(self.rows), len(self.sites)), np.nan)
        for place, row in enumerate(self.rows):
            for column, site in enumerate(self.sites):
                cell = row.cells[site]
                if isinstance(cell, Measured):
                    found[place, column] = cell.metrics.get(metric, math.nan)
        return found

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the matrix as JSON values, as they are in `cross-site.json`.

        `sites` and `metrics` are lists of names. `models` has an object a model: `site` (null: the
        global one), `round`, `mean` (metric -> mean over the sites) and `at`: site -> an object
        with `metrics` and `weight`, or with `failure`, the reason. `without_model` lists sites of
        which no update counted.
        """
        return {
            "sites": list(self.sites),
            "metrics": list(self.metrics),
            "models": [self._row(row) for row in self.rows],
            "without_model": list(self.without),
        }

    def _row(self, row: ModelRow) -> JsonValue:
        at: dict[str, JsonValue] = {}
        for site in self.sites:
            cell = row.cells[site]
            if isinstance(cell, Measured):
                at[site] = {"metrics": dict(cell.metrics), "weight": cell.weight}
            else:
                at[site] = {"failure": cell.reason}
        means: dict[str, JsonValue] = {
            name: mean for name in self.metrics if not math.isnan(mean := row.mean(name))
        }
        return {"site": row.site, "round": row.round, "mean": means, "at": at}

    def markdown(self, metric: str) -> str:
        """Returns a metric's table: a row a model, a column a site, and the mean over the sites."""
        names = [_cell(site) for site in self.sites]
        lines = [
            f"| model of | {' | '.join(names)} | mean |",
            f"| --- |{' ---: |' * (len(names) + 1)}",
        ]
        for row, values in zip(self.rows, self.values(metric), strict=True):
            cells = [_number(value) for value in [*values, row.mean(metric)]]
            if row.site in self.sites:
                place = self.sites.index(row.site)
                cells[place] = f"**{cells[place]}**"
            lines.append(f"| {_cell(row.name)} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def markdown_of_failures(self) -> str:
        """Returns a list of what is missing, and why; empty if nothing is."""
        lines = [f"- {_cell(site)} has no model: no update of it counted" for site in self.without]
        lines += [
            f"- model of {_cell(row.name)} at {_cell(failure.site)}: {_cell(failure.reason)}"
            for row, failure in self.failures
        ]
        if len(lines) > _LISTED:
            lines[_LISTED:] = [f"- and {len(lines) - _LISTED} more, in cross-site.json"]
        return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _cell(text: str) -> str:
    """Returns text that stays in its cell or line, and is no markup."""
    plain = " ".join(text.split())
    for mark in "\\`*_[]<>|":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
