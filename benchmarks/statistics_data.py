"""Data for `benchmarks.statistics`: the sites' folders, and the pooled rows to compare with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import fsum, isclose
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.reading import batches, write_postgresql, write_sqlite
from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.schema import Correlation, Split, Statistics, Summary
from tests.integration.postgresql import database

Numbers = NDArray[np.float64]

EXACT = 1e-12
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
"""Those that a job has by default."""

_CORRELATION = 1e-9
_FIGURES = 18  # a column at least, on the average; without any correlation there are 14
_SPLITS = ("train", "test")
_OPEN = """privacy:
  minimum_rows: 1
  small_cell: 0
  small_missing: 0
  rows_per_bin: 1
  rows_per_category: 1
  minmax_noise: 0
  changed_rows: 0
"""
"""The sites' policy: the data are random numbers, and what is withheld cannot be compared."""


@dataclass(frozen=True)
class Pooled:
    """All sites' rows, to compare with.

    Args:
        splits: Their names.
        frames: Split -> the rows, a frame at a time; the same in every call.
    """

    splits: tuple[str, ...]
    frames: Callable[[str], Iterable[pd.DataFrame]]


def patients(rows: int, seed: int) -> pd.DataFrame:
    """Returns 30 columns: 21 of numbers, 3 of whole numbers, 3 boolean, 2 of categories, a date."""
    random = np.random.default_rng(seed)
    columns: dict[str, object] = {}
    for number in range(15):
        columns[f"x{number}"] = random.normal(number, 1 + number, rows)
    for number in range(4):
        columns[f"skewed{number}"] = random.exponential(1 + number, rows)
    for number in range(2):
        columns[f"far{number}"] = 1e9 + random.normal(number, 1, rows)
    for number in range(3):
        columns[f"whole{number}"] = random.integers(0, 10 ** (1 + number), rows)
        columns[f"is{number}"] = random.random(rows) < 0.2 + 0.2 * number
    for number in range(2):
        columns[f"ward{number}"] = random.choice(["north", "south", "east", "west"], rows)
    seconds = random.integers(0, 10**8, rows)
    columns["seen"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(seconds, unit="s")
    frame = pd.DataFrame(columns)
    for number in range(5):
        frame.loc[random.random(rows) < 0.1, f"x{number}"] = np.nan
    return frame


def write_files(folder: Path, sites: int, rows: int) -> Pooled:
    """Writes CSV files of 30 columns in 2 splits for each site; returns the pooled rows."""
    for number in range(sites):
        own = folder / f"site-{number + 1}"
        own.mkdir(parents=True)
        for place, split in enumerate(_SPLITS):
            patients(rows, 2 * number + place).to_csv(own / f"{split}.csv", index=False)
        lines = [f"      {split}: {{csv: {split}.csv}}" for split in _SPLITS]
        text = _OPEN + "\n".join(["datasets:", "  benchmark:", "    splits:", *lines, ""])
        (own / "datasets.yaml").write_text(text)

    def frames(split: str) -> Iterator[pd.DataFrame]:
        for number in range(sites):
            yield patients(rows, 2 * number + _SPLITS.index(split))

    return Pooled(_SPLITS, frames)


def write_databases(folder: Path, sites: int, rows: int, source: str, stack: ExitStack) -> Pooled:
    """Writes a table of 20 columns for each site into databases; returns the pooled rows."""
    url = ""
    if source == "postgresql":
        url = stack.enter_context(database()).replace("+asyncpg", "")
    for number in range(sites):
        own = folder / f"site-{number + 1}"
        own.mkdir(parents=True)
        table, its_url = "visits", "sqlite:///visits.db"
        if source == "sqlite":
            write_sqlite(own / "visits.db", rows, seed=number)
        else:
            table, its_url = f"visits_{number}", url
            write_postgresql(url, rows, seed=number, table=table)
        query = f"SELECT * FROM {table}"
        (own / "datasets.yaml").write_text(
            f"{_OPEN}datasets:\n  benchmark: {{url: '{its_url}', query: {query}}}\n"
        )

    def frames(split: str) -> Iterator[pd.DataFrame]:
        for number in range(sites):
            for batch in batches(rows, seed=number):
                yield batch.to_pandas()

    return Pooled(("all",), frames)


class Check:
    """Compares a result with the pooled rows, and counts what it compares.

    All sites have an open policy, so a number that is not there is wrong, too.

    Args:
        result: What the job found.
        pooled: The rows.
        sites: How many sites there are.
    """

    def __init__(self, result: Statistics, pooled: Pooled, sites: int) -> None:
        self.compared = 0
        self.wrong: list[str] = []
        self._where = "sites"
        answered = sum(state.state == "answered" for state in result.sites.values())
        self._same("answered", answered, sites)
        self._where = "result"
        others = [line for line in result.withheld if "some correlations withheld" not in line]
        self._same("withheld", others, [])
        self._same("splits", sorted(result.splits), sorted(pooled.splits))
        self._least = 0
        for split in pooled.splits:
            columns = len(next(iter(pooled.frames(split))).columns)
            self._least += _FIGURES * columns
            if split in result.splits:
                self._split(split, result.splits[split], pooled)

    @property
    def matches(self) -> bool:
        """Whether nothing is wrong, and no less was compared than there is."""
        return not self.wrong and self.compared >= self._least

    def _split(self, name: str, split: Split, pooled: Pooled) -> None:
        columns = list(next(iter(pooled.frames(name))).columns)
        self._where = name
        self._same("columns", sorted(split.features), sorted(columns))
        for column in columns:
            if column not in split.features:
                continue
            self._where = f"{name}, {column}"
            feature = split.features[column]
            self._same("sites without it", feature.without, [])
            parts = [_numbers(frame[column]) for frame in pooled.frames(name)]
            if feature.kind == "categorical":
                counts = pd.concat(parts).value_counts()
                expected = {str(key): int(number) for key, number in counts.items()}
                self._same("categories", feature.overall.categories, expected)
                continue
            values = np.concatenate([part.to_numpy(float) for part in parts])
            self._summary(feature.overall, values, has_bins=feature.kind != "boolean")
        self._where = f"{name}, correlation"
        numbers = [
            column
            for column in columns
            if column in split.features and split.features[column].kind != "categorical"
        ]
        self._correlation(split, numbers, pooled.frames(name))

    def _same(self, what: str, found: object, expected: object) -> None:
        self.compared += 1
        if found != expected:
            self.wrong.append(f"{self._where}: {what}: {found!r}, not {expected!r}"[:300])

    def _near(self, what: str, found: float | None, expected: float, least: float) -> None:
        """Compares two numbers to 1e-12 of their size, or of `least` if that is more."""
        self.compared += 1
        if found is None or not isclose(found, expected, rel_tol=EXACT, abs_tol=EXACT * least):
            self.wrong.append(f"{self._where}: {what}: {found!r}, not {expected!r}")

    def _summary(self, summary: Summary, values: Numbers, has_bins: bool) -> None:
        there = np.sort(values[np.isfinite(values)])
        mean = fsum(there) / len(there)
        self._same("count", summary.count, len(there))
        self._same("missing", summary.missing, len(values) - len(there))
        self._same("min", summary.min, there[0])
        self._same("max", summary.max, there[-1])
        self._near("sum", summary.sum, fsum(there), least=fsum(np.abs(there)))
        self._near("mean", summary.mean, mean, least=1.0)
        variance = fsum((there - mean) ** 2) / (len(there) - 1)
        self._near("variance", summary.variance, variance, least=1.0)
        self._near("std", summary.std, variance**0.5, least=1.0)
        if has_bins:
            self._histogram(summary, there)
            self._quantiles(summary, there)

    def _histogram(self, summary: Summary, there: Numbers) -> None:
        if summary.histogram is None:
            self._same("histogram", None, "one")
            return
        inner = [edge for edge in summary.histogram.edges if abs(edge) < OUTER]
        counts, _ = np.histogram(there, inner)
        self._same("bins", summary.histogram.counts, counts.tolist())

    def _quantiles(self, summary: Summary, there: Numbers) -> None:
        self._same("quantiles", [quantile.q for quantile in summary.quantiles], QUANTILES)
        for quantile in summary.quantiles:
            true = float(np.quantile(there, quantile.q))
            low, high = quantile.lower, quantile.upper
            self.compared += 1
            if low is None or high is None:
                self.wrong.append(f"{self._where}: quantile {quantile.q} has no bounds")
            elif not low - EXACT * abs(low) <= true <= high + EXACT * abs(high):
                self.wrong.append(
                    f"{self._where}: quantile {quantile.q}: {true} is not in [{low}, {high}]"
                )

    def _correlation(
        self, split: Split, columns: list[str], frames: Iterable[pd.DataFrame]
    ) -> None:
        """Compares pairs that no site withholds: sites do if few rows differ between two pairs."""
        found = split.correlation
        if found is None:
            self._same("table", None, "one")
            return
        self._same("columns", sorted(found.columns), sorted(columns))
        if not set(found.columns) <= set(columns):
            return
        sites = split.correlation_by_site.values()
        expected = correlations(frames, found.columns)
        for place, one in enumerate(found.columns):
            for other in range(place):
                if any(_lacks(its, one, found.columns[other]) for its in sites):
                    continue
                value, true = found.values[place][other], float(expected[place, other])
                self.compared += 1
                if value is None or abs(value - true) > _CORRELATION:
                    pair = f"{one} and {found.columns[other]}"
                    self.wrong.append(f"{self._where}: {pair}: {value!r}, not {true!r}")


def _lacks(found: Correlation, one: str, other: str) -> bool:
    return found.values[found.columns.index(one)][found.columns.index(other)] is None


def correlations(frames: Iterable[pd.DataFrame], columns: list[str]) -> Numbers:
    """Returns the correlations of columns, each pair over the rows that have both.

    A frame at a time, with numpy's products: the rows of all sites may be too many for memory.
    """
    shift: Numbers | None = None
    sums = {name: np.zeros((len(columns), len(columns))) for name in ("n", "x", "xx", "xy")}
    for frame in frames:
        values = np.column_stack([_numbers(frame[name]).to_numpy(float) for name in columns])
        if shift is None:
            shift = np.nanmean(values, axis=0)
        there = np.isfinite(values)
        near = np.where(there, values - shift, 0.0)
        ones = there.astype(float)
        sums["n"] += ones.T @ ones
        sums["x"] += near.T @ ones  # of the row's column, where the other is there
        sums["xx"] += (near**2).T @ ones
        sums["xy"] += near.T @ near
    n, x = sums["n"], sums["x"]
    spread = sums["xx"] - x**2 / n
    result: Numbers = (sums["xy"] - x * x.T / n) / np.sqrt(spread * spread.T)
    return result


def _numbers(column: "pd.Series") -> "pd.Series":
    if column.dtype.kind == "M":
        return (column - pd.Timestamp("1970-01-01")).dt.total_seconds()
    return column.astype(float) if column.dtype.kind in "bfiu" else column
