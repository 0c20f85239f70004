"""Folders of three sites for the tests of flows on tables: CSV files and a `datasets.yaml`."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

DATASETS = """\
privacy:
  training: true
  small_cell: {small_cell}
datasets:
  made:
    splits:
      train: {{csv: train.csv}}
      test: {{csv: test.csv}}
"""


def write_sites(folder: Path, sites: Mapping[str, pd.DataFrame], small_cell: int = 5) -> Path:
    """Writes each site's rows, every fifth of them for tests; returns the folder of all sites."""
    for name, rows in sites.items():
        own = folder / name
        own.mkdir(parents=True)
        is_test = pd.Series(range(len(rows)), index=rows.index) % 5 == 4
        rows[~is_test].to_csv(own / "train.csv", index=False)
        rows[is_test].to_csv(own / "test.csv", index=False)
        (own / "datasets.yaml").write_text(DATASETS.format(small_cell=small_cell))
    return folder


def read_all(folder: Path, split: str, sites: list[str] | None = None) -> pd.DataFrame:
    """Returns all sites' rows of a split together."""
    names = sites or sorted(path.name for path in folder.iterdir())
    return pd.concat([pd.read_csv(folder / name / f"{split}.csv") for name in names])


def documented(page: str) -> dict[str, str]:
    """Returns the parameters that a page of docs/ lists, with their defaults as it shows them."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    lines = text[text.index("## Parameters") :].splitlines()
    cells = [line.split("|") for line in lines if line.startswith("| `")]
    return {cell[1].strip(" `"): cell[2].strip(" `") for cell in cells}
