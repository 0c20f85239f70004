from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prefect_federated.executors import Site, load_executor
from prefect_federated.messages import Tensors

Load = Callable[[str, str], ModuleType]
Run = Callable[[str, Mapping[str, Path], int], Tensors]


@pytest.fixture
def prepare(load_example: Load) -> ModuleType:
    return load_example("digits", "prepare")


def counts(folders: dict[str, Path]) -> dict[str, list[int]]:
    found = {}
    for site, folder in folders.items():
        with np.load(folder / "digits.npz") as arrays:
            found[site] = np.bincount(arrays["train_y"], minlength=10).tolist()
    return found


@pytest.mark.parametrize("partitioner", ["dirichlet", "iid", "by_quantity", "shards"])
def test_every_training_image_is_at_exactly_one_site(
    prepare: ModuleType, tmp_path: Path, partitioner: str
) -> None:
    folders = prepare.divide(tmp_path, 7, 0.5, 1, partitioner)
    assert sum(map(sum, counts(folders).values())) == 1797 - 359
    images = set()
    for folder in folders.values():
        with np.load(folder / "digits.npz") as arrays:
            images |= {image.tobytes() for image in arrays["train_x"]}
    assert len(images) == 1797 - 359


def test_all_sites_share_the_test_images_and_none_trains_on_them(
    prepare: ModuleType, tmp_path: Path
) -> None:
    folders = prepare.divide(tmp_path, ["a", "b", "c"])
    arrays = [np.load(folder / "digits.npz") for folder in folders.values()]
    assert list(folders) == ["a", "b", "c"]
    for other in arrays[1:]:
        np.testing.assert_array_equal(other["test_x"], arrays[0]["test_x"])
        np.testing.assert_array_equal(other["test_y"], arrays[0]["test_y"])
    assert sum(len(each["train_y"]) for each in arrays) + len(arrays[0]["test_y"]) == 1797
    test_images = {image.tobytes() for image in arrays[0]["test_x"]}
    train_images = {image.tobytes() for each in arrays for image in each["train_x"]}
    assert not test_images & train_images


def test_the_seed_decides_the_shares_and_alpha_how_even_they_are(
    prepare: ModuleType, tmp_path: Path
) -> None:
    same = [counts(prepare.divide(tmp_path / name, 4, 0.5, seed=1)) for name in "xy"]
    other = counts(prepare.divide(tmp_path / "z", 4, 0.5, seed=2))
    assert same[0] == same[1] != other

    def unevenness(alpha: float) -> float:
        table = np.array(list(counts(prepare.divide(tmp_path / f"{alpha}", 4, alpha)).values()))
        return float((table / table.sum(axis=0)).std())

    assert unevenness(100.0) < 0.05 < unevenness(1.0) < unevenness(0.1)


def test_the_command_draws_the_split_and_says_what_is_wrong(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.command(tmp_path, 3, picture=tmp_path / "split.png")
    assert "site-3: [" in capsys.readouterr().out
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="'even'; choose one of iid, dirichlet"):
        prepare.command(tmp_path, partitioner="even")
    with pytest.raises(SystemExit, match="alpha is 0"):
        prepare.command(tmp_path, alpha=0)


def test_six_rounds_of_four_sites_read_nine_digits_in_ten(
    prepare: ModuleType, run_rounds: Run, tmp_path: Path
) -> None:
    folders = prepare.divide(tmp_path, 4)
    model = run_rounds("digits", folders, 6)
    site = Site("site-1", folders["site-1"], tmp_path)
    last = load_executor("digits").function("evaluate")(model, site)
    assert last.metrics["accuracy"] > 0.9
    assert last.weight == 359
