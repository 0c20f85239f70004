"""Data for `benchmarks.statistics`: the sites' folders, and the pooled rows to compare with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from math import fsum, isclose
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.reading import batches, write_postgresql, write_sqlite
from prefect_federated.statistics.schema import Statistics, Summary
from tests.integration.postgresql import database

Frames = Callable[[str], Iterable[pd.DataFrame]]
"""Split -> all sites' rows, a frame at a time; the same in every call."""

EXACT = 1e-12
_SPLITS = ("train", "test")


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


def write_files(folder: Path, sites: int, rows: int) -> Frames:
    """Writes CSV files of 30 columns in 2 splits for each site; returns the pooled rows."""
    for number in range(sites):
        own = folder / f"site-{number + 1}"
        own.mkdir(parents=True)
        for place, split in enumerate(_SPLITS):
            patients(rows, 2 * number + place).to_csv(own / f"{split}.csv", index=False)
        lines = [f"      {split}: {{csv: {split}.csv}}" for split in _SPLITS]
        text = "\n".join(["datasets:", "  benchmark:", "    splits:", *lines, ""])
        (own / "datasets.yaml").write_text(text)

    def frames(split: str) -> Iterator[pd.DataFrame]:
        for number in range(sites):
            yield patients(rows, 2 * number + _SPLITS.index(split))

    return frames


def write_databases(folder: Path, sites: int, rows: int, source: str, stack: ExitStack) -> Frames:
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
            f"datasets:\n  benchmark: {{url: '{its_url}', query: {query}}}\n"
        )

    def frames(split: str) -> Iterator[pd.DataFrame]:
        for number in range(sites):
            for batch in batches(rows, seed=number):
                yield batch.to_pandas()

    return frames


def mismatches(result: Statistics, frames: Frames) -> list[str]:
    """Returns what of a result is not what the pooled rows give; what is withheld is left out."""
    wrong: list[str] = []
    for split, its in result.splits.items():
        for name, feature in its.features.items():
            parts = [_numbers(frame[name]) for frame in frames(split)]
            if feature.kind == "categorical":
                pooled = pd.concat(parts).value_counts()
                counts = feature.overall.categories or {}
                bad = {c: n for c, n in counts.items() if n is not None and n != pooled[c]}
                wrong += [f"{split}, {name}: {bad}"] if bad else []
                continue
            values = np.concatenate([part.to_numpy(float) for part in parts])
            wrong += [f"{split}, {name}: {number}" for number in _wrong(feature.overall, values)]
    return wrong


def _numbers(column: "pd.Series") -> "pd.Series":
    if column.dtype.kind == "M":
        return (column - pd.Timestamp("1970-01-01")).dt.total_seconds()
    return column.astype(float) if column.dtype.kind in "bfiu" else column


def _wrong(summary: Summary, values: np.ndarray) -> Iterator[str]:
    there = np.sort(values[np.isfinite(values)])
    mean = fsum(there) / len(there)
    expected: Mapping[str, float] = {
        "count": len(there),
        "missing": len(values) - len(there),
        "mean": mean,
        "variance": fsum((there - mean) ** 2) / (len(there) - 1),
    }
    for name, value in expected.items():
        found = getattr(summary, name)
        if found is not None and not isclose(found, value, rel_tol=EXACT, abs_tol=EXACT):
            yield f"{name} is {found!r}, not {value!r}"
    if summary.histogram is not None:
        counts, _ = np.histogram(there, summary.histogram.edges)
        for found, value in zip(summary.histogram.counts, counts.tolist(), strict=True):
            if found is not None and found > value:  # less where a site withholds its part
                yield f"a bin has {found}, not {value}"
    for quantile in summary.quantiles:
        true = float(np.quantile(there, quantile.q))
        low = -np.inf if quantile.lower is None else quantile.lower
        high = np.inf if quantile.upper is None else quantile.upper
        if not low - EXACT * abs(low) <= true <= high + EXACT * abs(high):
            yield f"quantile {quantile.q} is {true}, not in [{low}, {high}]"
