import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prefect_federated.messages import Tensors

SIZES = {"cleveland": 304, "hungary": 293, "switzerland": 123, "va-long-beach": 200}
Load = Callable[[str, str], ModuleType]
Run = Callable[[str, Mapping[str, Path], int], Tensors]


@pytest.fixture
def heart(load_example: Load) -> ModuleType:
    return load_example("heart", "heart")


@pytest.fixture
def folders(load_example: Load, tmp_path: Path) -> dict[str, Path]:
    split: dict[str, Path] = load_example("heart", "prepare").split_by_hospital(tmp_path)
    return split


def test_each_hospital_gets_its_own_rows_and_no_others(folders: dict[str, Path]) -> None:
    rows = {}
    for site, folder in folders.items():
        with (folder / "heart.csv").open(newline="") as source:
            rows[site] = list(csv.DictReader(source))
    assert {site: len(found) for site, found in rows.items()} == SIZES
    assert all(len({row["dataset"] for row in found}) == 1 for found in rows.values())
    assert len({row["id"] for found in rows.values() for row in found}) == 920


def test_the_test_split_is_a_fixed_quarter_of_the_sick_and_of_the_others(
    heart: ModuleType, folders: dict[str, Path]
) -> None:
    for folder in folders.values():
        patients = heart.read_patients(folder / "heart.csv")
        for label in (0, 1):
            of_label = patients.is_test[patients.y == label]
            assert abs(of_label.sum() - len(of_label) / 4) <= 0.5
        backwards = heart.test_split(patients.ids[::-1], patients.y[::-1])
        np.testing.assert_array_equal(backwards[::-1], patients.is_test)


def test_no_test_row_leaks_into_what_training_sees(
    heart: ModuleType, folders: dict[str, Path], tmp_path: Path
) -> None:
    original = heart.read_patients(folders["hungary"] / "heart.csv")
    test_ids = set(original.ids[original.is_test])
    with (folders["hungary"] / "heart.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    for row in rows:
        if int(row["id"]) in test_ids:
            row.update(age="1000", chol="1000", ca="1000", oldpeak="1000", thalch="1000")
    changed_csv = tmp_path / "changed.csv"
    with changed_csv.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    changed = heart.read_patients(changed_csv)

    train = ~original.is_test
    np.testing.assert_array_equal(changed.x[train], original.x[train])
    assert not np.array_equal(changed.x[~train], original.x[~train])
    tensors = heart.as_tensors(original)
    assert len(tensors.train[1]) + len(tensors.test[1]) == SIZES["hungary"]


def test_every_site_has_the_same_columns_and_no_gap_reaches_the_model(
    heart: ModuleType, folders: dict[str, Path]
) -> None:
    for site, folder in folders.items():
        patients = heart.read_patients(folder / "heart.csv")
        assert patients.x.shape == (SIZES[site], len(heart.COLUMNS))
        assert patients.x.dtype == np.float32
        assert np.isfinite(patients.x).all()
        assert np.abs(patients.x).max() <= 4


def test_numbers_are_scaled_by_the_training_rows_and_gaps_are_marked(
    heart: ModuleType, folders: dict[str, Path]
) -> None:
    patients = heart.read_patients(folders["cleveland"] / "heart.csv")
    age = patients.x[~patients.is_test, heart.COLUMNS.index("age")]
    assert age.mean() == pytest.approx(0, abs=1e-5)
    assert age.std() == pytest.approx(1, abs=0.01)  # a little less where it is cut at 4

    swiss = heart.read_patients(folders["switzerland"] / "heart.csv")
    assert (swiss.x[:, heart.COLUMNS.index("chol")] == 0).all()
    assert (swiss.x[:, heart.COLUMNS.index("chol missing")] == 1).all()


def test_federated_training_comes_near_pooled_and_beats_every_hospital_alone(
    heart: ModuleType, folders: dict[str, Path], load_example: Load, run_rounds: Run, tmp_path: Path
) -> None:
    baselines = load_example("heart", "baselines")
    hospitals = [heart.read_patients(folder / "heart.csv") for folder in folders.values()]
    everyone = heart.as_tensors(baselines.together(hospitals))
    federated = baselines.accuracy(run_rounds("heart", folders, 20), everyone)

    compared = baselines.baselines(tmp_path)
    assert compared == baselines.baselines(tmp_path)
    assert set(compared.alone) == set(SIZES)
    assert federated > 0.83
    assert federated > compared.pooled.everywhere - 0.02
    assert all(federated > alone.everywhere for alone in compared.alone.values())
