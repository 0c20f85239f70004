"""The measurements of `benchmarks.digits`, as short as they can be."""

import json
from pathlib import Path

import pytest

from benchmarks import training_share


@pytest.mark.usefixtures("prefect_api")
def test_the_training_loop_is_timed_within_the_sites_busy_time(tmp_path: Path) -> None:
    training_share.main(tmp_path / "told.json", epoch_s=0.05)
    told = json.loads((tmp_path / "told.json").read_text())["training"]
    assert 0 < told["epoch_s"] < told["busy_s"]
    assert 0 < told["train_share"] < 1
    assert told["images"] >= 32
