"""The common steps of jobs on sites' tables, in a real simulated job."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect import flow

from prefect_federated.agents.simulator import simulate
from prefect_federated.aggregators import weighted_mean
from prefect_federated.errors import ConfigurationError, SitesDisagree, SnapshotCorrupt
from prefect_federated.messages import JsonValue
from prefect_federated.tabular.card import ModelCard
from prefect_federated.tabular.saved import Fitted, load_fitted
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.tabular import FittedRef, Tabular, TabularJob


class MeanJob(TabularJob):
    """The parameters of a job that learns the mean."""

    executor: str = "tests.tasks.table_executor"


@flow(name="mean", persist_result=False)
@takes(MeanJob)
def mean(job: MeanJob) -> FittedRef:
    """Learns the mean label."""
    with federation(job) as fed:
        tabular = Tabular(fed, job, objective="regression", needs=("numpy",))
        tabular.agree()
        encoding = tabular.fit_encoding()
        assert encoding.names == ("age", "town=Bern", "town=Chur")
        replies = fed.broadcast("train", config=tabular.config(), round=1, same_tensors=False)
        model = weighted_mean(replies)
        tabular.alone()
        tabular.evaluate(model)
        fitted = Fitted("sklearn", {"model.json": json.dumps(float(model["mean"])).encode()})
        return tabular.publish(
            fitted, rounds=1, parameters={"depth": 3}, leaves=["the mean label"],
            pictures={"curve": b"png"}, notes=["a <note>"],
        )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of 40, 60 and 80 rows."""
    folder = tmp_path_factory.mktemp("tables")
    for number in range(1, 4):
        random = np.random.default_rng(number)
        rows = 20 + 20 * number
        own = folder / f"site-{number}"
        own.mkdir()
        pd.DataFrame(
            {
                "age": random.normal(60, 10, rows),
                "town": random.choice(["Bern", "Chur"], rows),
                "pressure": random.normal(100 + 10 * number, 3, rows),
            }
        ).to_csv(own / "people.csv", index=False)
        (own / "datasets.yaml").write_text("datasets:\n  people:\n    csv: people.csv\n")
    return folder


@pytest.fixture(scope="module")
def result(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedRef:
    """One whole job."""
    output = tmp_path_factory.mktemp("output")
    found = simulate(
        mean, data=data, output=output, parameters={"dataset": "people", "label": "pressure"}
    )
    assert isinstance(found.returned, FittedRef)
    assert found.path == Path(found.returned.path)
    assert found.metrics == found.returned.history
    return found.returned


def test_the_card_compares_the_model_with_each_site_alone(result: FittedRef) -> None:
    folder = Path(result.path)
    card = ModelCard.model_validate_json((folder / "card.json").read_bytes())
    assert [(s.name, s.train_rows, s.test_rows) for s in card.sites] == [
        ("site-1", 32, 8), ("site-2", 48, 12), ("site-3", 64, 16)
    ]  # fmt: skip
    first, _, third = card.sites
    assert first.metrics["rmse"] > first.alone["rmse"]
    assert third.alone == {}
    assert "no model of its own" in str(third.alone_failed)
    rows = np.array([s.test_rows for s in card.sites])
    each = np.array([s.metrics["mae"] for s in card.sites])
    assert card.metrics["mae"] == pytest.approx((rows * each).sum() / rows.sum())
    assert card.versions["numpy"] == np.__version__
    assert card.features == ["age", "town"]
    page = (folder / "card.md").read_text()
    assert (
        f"| site-1 | 32 | 8 | {first.metrics['mae']:.4f} | {first.alone['mae']:.4f} \\* |" in page
    )
    assert "- the mean label" in page
    assert "a &lt;note>" in page
    assert (folder / "curve.png").read_bytes() == b"png"
    assert json.loads((folder / "model.json").read_text()) > 100


def test_the_jobs_table_is_in_the_result(result: FittedRef) -> None:
    assert [row["kind"] for row in result.history] == [
        "columns", "moments", "train", "alone", "evaluate"
    ]  # fmt: skip


def test_what_cannot_be_trained_on_says_so(data: Path, tmp_path: Path) -> None:
    asked: dict[str, JsonValue] = {
        "dataset": "people", "label": "presure", "features": ["age"]
    }  # fmt: skip
    said = "site-1, site-2, site-3: the label: there is no column 'presure'"
    with pytest.raises(SitesDisagree, match=said):
        simulate(mean, data=data, output=tmp_path, parameters=asked)


def test_an_unknown_dataset_is_said_once(data: Path, tmp_path: Path) -> None:
    asked = {"dataset": "poeple", "label": "pressure"}
    with pytest.raises(ConfigurationError, match=r"no site can take part.*Did you mean 'people'"):
        simulate(mean, data=data, output=tmp_path, parameters=asked)


def test_what_is_no_saved_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no card\.json"):
        load_fitted(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(SnapshotCorrupt, match=r"card\.json cannot be read"):
        load_fitted(tmp_path)
    (tmp_path / "card.json").write_text('{"kind": "os.system"}')
    with pytest.raises(SnapshotCorrupt, match=r"kind of model 'os\.system'; known are"):
        load_fitted(tmp_path)
