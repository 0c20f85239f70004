"""Sites with tables, as a test writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from prefect_federated.executors import Site
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.question import TabularQuestion
from prefect_federated.tabular.schema import Schema

OPEN = "{minimum_rows: 1, small_cell: 0, rows_per_category: 1}"

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(tmp_path: Path) -> MakeSite:
    """Makes a site whose dataset "people" has these rows, by split."""

    def make(
        splits: "Mapping[str, pd.DataFrame] | pd.DataFrame",
        name: str = "site-1",
        privacy: str = OPEN,
        entry: str = "",
    ) -> Site:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        parts = {"": splits} if isinstance(splits, pd.DataFrame) else dict(splits)
        for split, rows in parts.items():
            rows.to_csv(folder / f"{split or 'rows'}.csv", index=False)
        where = (
            "    csv: rows.csv\n"
            if "" in parts
            else "    splits:\n" + "".join(f"      {s}: {{csv: {s}.csv}}\n" for s in parts)
        )
        (folder / "datasets.yaml").write_text(
            f"privacy: {privacy}\ndatasets:\n  people:\n{where}{entry}"
        )
        return Site(name, folder, folder / "state")

    return make


def asking(site: Site, question: TabularQuestion, schema: Schema | None = None) -> Site:
    """Returns the site as a call with this question sees it."""
    from dataclasses import replace

    from prefect_federated.tabular.rows import config_of

    config: dict[str, JsonValue] = dict(config_of(question, schema))
    return replace(site, config=config)
