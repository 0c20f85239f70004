"""The breast cancer data at three sites of unequal size, as files, for jobs on tables."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.datasets import load_breast_cancer

SITES = ("a", "b", "c")
ENDS = (0, 60, 200, 398)  # of the training rows


def frames(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns 398 rows to train on and 171 to measure on; the label is "benign"."""
    loaded = load_breast_cancer(as_frame=True)
    rows = loaded.data.assign(benign=loaded.target)
    rows.columns = [name.replace(" ", "_") for name in rows.columns]
    rows = rows.iloc[np.random.default_rng(seed).permutation(len(rows))].reset_index(drop=True)
    return rows.iloc[:398], rows.iloc[398:]


def divided(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns site -> its training rows."""
    return {site: rows.iloc[a:b] for site, (a, b) in zip(SITES, pairwise(ENDS), strict=True)}


def write(
    folder: Path,
    train: Mapping[str, pd.DataFrame],
    test: pd.DataFrame,
    raw_rows: Sequence[str] = (),
) -> Path:
    """Writes a folder a site, with datasets.yaml; sites in `raw_rows` let rows leave."""
    for number, (site, rows) in enumerate(train.items()):
        own = folder / site
        own.mkdir(parents=True)
        rows.to_csv(own / "train.csv", index=False)
        test.iloc[number :: len(train)].to_csv(own / "test.csv", index=False)
        entry: dict[str, object] = {
            "splits": {"train": {"csv": "train.csv"}, "test": {"csv": "test.csv"}}
        }
        if site in raw_rows:
            entry["privacy"] = {"raw_rows": True}
        (own / "datasets.yaml").write_text(yaml.safe_dump({"datasets": {"cancer": entry}}))
    return folder
