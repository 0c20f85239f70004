"""The same rows are the same numbers, whichever source they are read from."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.datasets.conftest import Load, whole

SOURCES = """
csv: {csv: rows.csv}
adbc: {url: 'sqlite:///rows.db', query: SELECT * FROM visits}
pysqlite: {url: 'sqlite+pysqlite:///rows.db', query: SELECT * FROM visits}
parquet: {parquet: rows.parquet}
"""
TEXTS = ["north", "south, old", 'with "quotes"', "é; ü", "two\nlines", " space", "2024-01"]


def random_frame(random: np.random.Generator) -> pd.DataFrame:
    rows = int(random.choice([1, 2, 7, 50]))
    columns = {
        "number": pd.Series(random.normal(size=rows) * 10.0 ** random.integers(-300, 300)),
        "whole": pd.Series(random.integers(-(10**15), 10**15, rows).astype(float)),
        "text": pd.Series(random.choice(TEXTS, rows), dtype=object),
        "seen": pd.Series(pd.to_datetime(random.integers(-(10**9), 4 * 10**9, rows), unit="s")),
        "truth": pd.Series(random.random(rows) < 0.5, dtype=object),
    }
    for values in columns.values():
        values[random.random(rows) < random.choice([0, 0.3, 1])] = None
    return pd.DataFrame(columns)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_rows_are_the_same_numbers(seed: int, load: Load, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    frame = random_frame(random)
    times = frame["seen"].dt.strftime("%Y-%m-%d %H:%M:%S").astype(object)
    as_text = frame.assign(seen=times.where(frame["seen"].notna(), None))
    as_text.to_csv(tmp_path / "rows.csv", index=False)
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection:
        as_text.to_sql("visits", connection, index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    expected = pd.DataFrame(
        {
            "number": frame["number"],
            "whole": frame["whole"],
            "text": frame["text"].fillna("?"),
            "seen": (frame["seen"] - pd.Timestamp(0)).dt.total_seconds(),
            "truth": frame["truth"].astype(float),
        }
    )
    datasets = load(SOURCES)
    for name in datasets.names:
        with datasets.named(name).table("all") as table:
            found = whole(table, rows=int(random.integers(1, 60)))
        texts = found["text"].astype(object).fillna("?")
        found = found.assign(text=texts)[list(expected.columns)]
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-15)
