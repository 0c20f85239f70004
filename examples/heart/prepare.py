"""Writes each hospital's rows of the UCI heart disease data into that hospital's own folder.

python examples/heart/prepare.py data/heart

Beside them is the hospital's `datasets.yaml`, which names them for statistics.
"""

import csv
from pathlib import Path

import cyclopts

HERE = Path(__file__).parent
SITES = {
    "Cleveland": "cleveland",
    "Hungary": "hungary",
    "Switzerland": "switzerland",
    "VA Long Beach": "va-long-beach",
}

DATASETS = """\
datasets:
  heart:
    csv: heart.csv
    forbidden: [id, dataset] # a number a patient, and the hospital's own name
"""


def split_by_hospital(
    folder: Path, csv_file: Path = HERE / "heart_disease_uci.csv"
) -> dict[str, Path]:
    """Writes `heart.csv` and `datasets.yaml` into `<folder>/<site>`; returns site -> its folder."""
    with csv_file.open(newline="") as source:
        reader = csv.DictReader(source)
        columns = list(reader.fieldnames or ())
        patients = list(reader)
    folders = {site: folder / site for site in SITES.values()}
    for hospital, site in SITES.items():
        folders[site].mkdir(parents=True, exist_ok=True)
        with (folders[site] / "heart.csv").open("w", newline="") as target:
            writer = csv.DictWriter(target, columns)
            writer.writeheader()
            writer.writerows(row for row in patients if row["dataset"] == hospital)
        (folders[site] / "datasets.yaml").write_text(DATASETS)
    return folders


def command(folder: Path) -> None:
    """Writes each hospital's rows of the UCI heart disease data into that hospital's own folder."""
    for site, own in split_by_hospital(folder).items():
        print(f"{site}: {own / 'heart.csv'}")


if __name__ == "__main__":
    cyclopts.run(command)
