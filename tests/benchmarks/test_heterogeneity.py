"""The short form of the comparison; `benchmarks.heterogeneity` runs it at length."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.heterogeneity_record import Record, Result, Run, Settings, draw, planned
from benchmarks.heterogeneity_run import train
from benchmarks.images import ImageSet, read_images

SETTINGS = Settings(
    data="digits",
    sites=3,
    rounds=2,
    epochs=1,
    steps_per_epoch=5,
    lr=0.1,
    subset=300,
    test_subset=90,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    digits, file = load_digits(), tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(
        file,
        x_train=digits.images[:1400],
        y_train=digits.target[:1400],
        x_test=digits.images[1400:],
        y_test=digits.target[1400:],
    )
    return read_images(file, SETTINGS.subset, test_subset=SETTINGS.test_subset)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("algorithm", ["fedprox", "fedopt", "scaffold"])
def test_each_algorithm_trains_and_tells_its_accuracy_after_each_round(
    images: ImageSet, tmp_path: Path, algorithm: str
) -> None:
    result = train(Run(algorithm, 0.5, 1), images, SETTINGS, tmp_path)
    assert result.error == ""
    assert result.failures == 0
    assert sum(result.site_images) == 300
    assert len(result.accuracy) == 2
    # each is a whole number of the 90 test images (metrics have 7 digits)
    counts = np.array(result.accuracy) * 90
    assert np.abs(counts - counts.round()).max() < 1e-4
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_cannot_go_on_is_a_result_with_its_reason(
    images: ImageSet, tmp_path: Path
) -> None:
    result = train(Run("fedavg", 0.5, 0), images, replace(SETTINGS, sites=301), tmp_path)
    assert "too few" in result.error


def test_fedavg_runs_at_each_alpha_and_the_others_at_the_smallest() -> None:
    runs = planned((0.1, 1.0), ("scaffold", "fedavg"), 2)
    assert runs == [
        Run("fedavg", 1.0, 0), Run("fedavg", 0.1, 0), Run("scaffold", 0.1, 0),
        Run("fedavg", 1.0, 1), Run("fedavg", 0.1, 1), Run("scaffold", 0.1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("alphas", "algorithms", "seeds", "why"),
    [
        ((0.0,), ("fedavg",), 1, "above 0"),
        ((float("nan"),), ("fedavg",), 1, "above 0"),
        ((0.1,), ("fedsgd",), 1, "choose from fedavg"),
        ((0.1,), ("fedavg",), 0, "1 seed"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    alphas: tuple[float, ...], algorithms: tuple[str, ...], seeds: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        planned(alphas, algorithms, seeds)


def test_an_interrupted_comparison_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    file, done, failed = tmp_path / "runs.json", Run("fedavg", 0.1, 0), Run("fedavg", 0.1, 1)
    record = Record.at(file, SETTINGS)
    record.add(done, Result(accuracy=[0.5, 0.75], site_images=[1, 2, 3], seconds=1.5))
    record.add(failed, Result(error="the site burnt down"))
    again = Record.at(file, SETTINGS)
    assert again.result(done) == record.result(done)
    assert not again.has(failed)
    with pytest.raises(ValueError, match="other settings"):
        Record.at(file, replace(SETTINGS, rounds=3))
    file.write_text("[]")
    with pytest.raises(ValueError, match="not of this program"):
        Record.at(file, SETTINGS)


def test_means_are_over_seeds_and_two_pictures_are_drawn(tmp_path: Path) -> None:
    runs = planned((0.1, 1.0), ("fedavg", "fedopt"), 2)
    record = Record.at(None, SETTINGS)
    for run in runs:
        record.add(run, Result(accuracy=[0.1, 0.2 + 0.1 * run.seed + 0.5 * run.alpha]))
    found = {(row["algorithm"], row["alpha"]): row["accuracy"] for row in record.means()}
    # sums of two such numbers are exact to 1e-16 or so
    assert found == pytest.approx(
        {("fedavg", 1.0): 0.75, ("fedavg", 0.1): 0.3, ("fedopt", 0.1): 0.3}, abs=1e-12
    )
    pictures = list(draw(record, runs, tmp_path / "pictures"))
    assert [file.name for file in pictures] == [
        "fedavg-by-alpha.png",
        "algorithms-at-alpha-0.1.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in pictures)
