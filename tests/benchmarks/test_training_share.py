"""The measurements of `benchmarks.digits`, as short as they can be."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import digits_sites, training_share
from prefect_federated.executors import Site


@pytest.mark.usefixtures("prefect_api")
def test_the_training_loop_is_timed_within_the_sites_busy_time(tmp_path: Path) -> None:
    training_share.main(tmp_path / "told.json", epoch_s=0.05)
    told = json.loads((tmp_path / "told.json").read_text())["training"]
    assert 0 < told["epoch_s"] < told["busy_s"]
    assert 0 < told["train_share"] < 1
    assert told["images"] >= 32


def test_each_digit_is_at_one_site_to_train_on_or_to_measure_on(tmp_path: Path) -> None:
    seen = []
    for number in (1, 2, 3):
        site = Site(f"site-{number}", tmp_path, tmp_path, config={"sites": 3})
        for images, classes in vars(digits_sites.read(site)).values():
            assert len(images) == len(classes)
            seen += [image.numpy().tobytes() for image in images]
    assert len(seen) == 1797
    assert len(set(seen)) == len(np.unique(digits_sites.load_digits().data, axis=0))
