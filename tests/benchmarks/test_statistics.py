"""The benchmark of statistics says when a number is wrong, or is not there."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.statistics_data import Check, Pooled, correlations, patients, write_files
from prefect_federated import simulate
from prefect_federated.statistics.schema import Statistics
from prefect_federated.tasks.statistics_result import StatisticsRef

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_numbers_that_are_wrong_or_not_there_do_not_match(tmp_path: Path) -> None:
    written = write_files(tmp_path / "data", sites=2, rows=200)
    frames = {split: list(written.frames(split)) for split in written.splits}
    pooled = Pooled(written.splits, frames.__getitem__)
    reference = simulate(
        "statistics", data=tmp_path / "data", parameters={"dataset": "benchmark"}
    ).returned
    assert isinstance(reference, StatisticsRef)
    text = Path(reference.path).read_text()
    good = Check(Statistics.model_validate_json(text), pooled, 2)
    assert good.wrong == []
    assert good.matches
    assert good.compared > 1_000

    def wrong(change: Any) -> list[str]:
        result: dict[str, Any] = Statistics.model_validate_json(text).model_dump()
        change(result)
        check = Check(Statistics.model_validate(result), pooled, 2)
        assert not check.matches
        return check.wrong

    def overall(result: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = result["splits"]["train"]["features"]["x0"]["overall"]
        return found

    def one_less(result: dict[str, Any]) -> None:
        overall(result)["histogram"]["counts"][3] -= 1

    def correlated(result: dict[str, Any]) -> None:
        result["splits"]["test"]["correlation"]["values"][5][1] += 1e-6

    assert "train, x0: bins" in wrong(one_less)[0]
    assert "test, correlation: " in wrong(correlated)[0]
    for name in ("sum", "min", "mean", "variance"):
        (line,) = wrong(lambda result, name=name: overall(result).update({name: None}))
        assert line.startswith(f"train, x0: {name}: None")
    assert wrong(lambda result: result["splits"].clear())
    assert wrong(lambda result: result["splits"]["train"]["features"].pop("x0"))
    assert wrong(lambda result: result["sites"]["site-2"].update(state="absent"))


def test_correlations_of_frames_are_numpys_over_the_rows_that_have_both() -> None:
    frames = [patients(300, seed) for seed in range(3)]
    names = ["x0", "x1", "far0", "is1"]
    found = correlations(frames, names)
    rows = pd.concat(frames)[names].astype(float)
    for place, one in enumerate(names):
        for other in range(place):
            both = rows[[one, names[other]]].dropna().to_numpy()
            assert found[place, other] == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-11)
