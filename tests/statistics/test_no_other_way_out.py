"""Nothing leaves a site but what `protect` let out: not by another field, an error, or a note."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefect_federated.errors import StatisticsFailed
from prefect_federated.executors import Site
from prefect_federated.messages import Update
from prefect_federated.statistics import site as executors
from prefect_federated.statistics.groups import GroupedTally
from prefect_federated.statistics.question import Question
from prefect_federated.statistics.schema import FromSite, Withheld
from prefect_federated.transport.updates import failure_of
from tests.statistics.surveyed import TASKS, asked

NOTHING = FromSite(splits={}, withheld=[Withheld(what="everything", reason="a test")])
RANGES = {"age": (0.0, 110.0), "score": (0.0, 1.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.integers(20, 90, 400).astype(float),
            "score": random.random(400),
            "ward": random.choice(["north", "south"], 400),
        }
    )
    frame.to_csv(tmp_path / "visits.csv", index=False)
    (tmp_path / "datasets.yaml").write_text("datasets: {visits: {csv: visits.csv}}\n")
    return tmp_path


def question(kind: str) -> Question:
    edges = {"all": {"age": [0.0, 40.0, 60.0, 110.0]}} if kind == "refine" else {}
    ranges = {} if kind == "describe" else RANGES
    return Question(
        dataset="visits", ranges=ranges, edges=edges, bins=10, fine=4,
        group_by=None if kind == "refine" else "ward",
    )  # fmt: skip


def everything_in(update: Update) -> list[object]:
    return [update.tensors, update.weight, update.metrics, update.metrics_weight, update.buffers]


@pytest.mark.parametrize("kind", list(TASKS))
def test_each_site_task_sends_what_protect_returns_and_nothing_else(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "protect", lambda *args, **kwargs: NOTHING)
    update = asked(folder, kind, question(kind))
    assert everything_in(update) == [{}, 1.0, {}, None, ()]
    assert update.blobs
    for blob in update.blobs.values():
        assert FromSite.model_validate_json(blob) == NOTHING


class Heard:
    """A stream that keeps what a site says while it works."""

    def __init__(self) -> None:
        self.notes: list[object] = []

    def tell(self, note: object) -> None:
        self.notes.append(note)


@pytest.mark.parametrize("kind", list(TASKS))
def test_a_site_says_no_numbers_while_it_works(folder: Path, kind: str) -> None:
    heard = Heard()
    config = question(kind).config()
    site = Site("a", folder, folder / "state", config=config, stream=heard)
    TASKS[kind]({}, site)
    assert not heard.notes


@pytest.mark.parametrize("kind", list(TASKS))
@pytest.mark.parametrize("at", ["count", "protect"])
def test_an_error_of_a_library_stays_at_the_site_with_the_value_in_it(
    folder: Path,
    kind: str,
    at: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("could not convert 'Jane Doe, 4711'")

    if at == "count":
        monkeypatch.setattr(GroupedTally, "add", fail)
    else:
        monkeypatch.setattr(executors, "protect", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(StatisticsFailed) as raised:
        asked(folder, kind, question(kind))
    sent = str(failure_of("a", raised.value).header)
    assert "Jane" not in sent
    assert "ValueError" in sent
    assert "Jane Doe" in caplog.text


@pytest.mark.parametrize("kind", list(TASKS))
def test_an_answer_has_no_number_of_a_single_row(folder: Path, kind: str) -> None:
    frame = pd.read_csv(folder / "visits.csv")
    update = asked(folder, kind, question(kind))
    text = b"".join(update.blobs.values()).decode()
    assert "score" in text or kind == "refine"
    assert not [score for score in frame["score"] if repr(score)[:12] in text]
