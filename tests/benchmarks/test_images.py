import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.images import FASHION_MNIST, ImageSet, UnfitImages, read_images

Arrays = dict[str, NDArray[np.generic]]


def arrays(train: int = 30, test: int = 12, side: int = 9, channels: int = 1) -> Arrays:
    random = np.random.default_rng(3)
    return {
        "x_train": random.integers(0, 256, (train, channels, side, side + 1)).astype(np.uint8),
        "y_train": np.arange(train) % 3 + 4,
        "x_test": random.integers(0, 256, (test, channels, side, side + 1)).astype(np.uint8),
        "y_test": np.arange(test) % 3 + 4,
    }


def read(tmp_path: Path, content: Arrays, subset: int | None = None, **halves: int) -> ImageSet:
    np.savez(tmp_path / "set.npz", **content)  # type: ignore[arg-type]
    return read_images(tmp_path / "set.npz", subset, **halves)


def test_images_come_standardized_with_classes_from_0(tmp_path: Path) -> None:
    found = read(tmp_path, arrays(channels=3))
    assert found.labels == ("4", "5", "6")
    assert found.train.images.shape == (30, 3, 9, 10)
    assert found.train.images.dtype == np.float32
    assert found.train.classes.tolist() == [n % 3 for n in range(30)]
    # float32 sums of 2,700 values of about 1: 1e-5 is a hundred times their rounding
    assert np.abs(found.train.images.mean(axis=(0, 2, 3))).max() < 1e-5
    assert np.abs(found.train.images.std(axis=(0, 2, 3)) - 1).max() < 1e-5


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x[:, 0],  # (n, h, w)
        lambda x: x.transpose(0, 2, 3, 1),  # (n, h, w, 1)
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),  # holds 0 to 255 exactly
    ],
)
def test_layout_and_dtype_do_not_matter(
    tmp_path: Path, layout: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> None:
    content = arrays()
    expected = read(tmp_path, content)
    changed = {name: layout(a) if name[0] == "x" else a[:, None] for name, a in content.items()}
    found = read(tmp_path, changed)
    assert np.array_equal(found.train.images, expected.train.images)
    assert np.array_equal(found.test.images, expected.test.images)
    assert np.array_equal(found.test.classes, expected.test.classes)


def test_colour_images_may_have_their_channels_last(tmp_path: Path) -> None:
    content = arrays(channels=3)
    expected = read(tmp_path, content)
    last = {name: a.transpose(0, 2, 3, 1) if name[0] == "x" else a for name, a in content.items()}
    assert np.array_equal(read(tmp_path, last).test.images, expected.test.images)


def test_large_images_become_means_over_squares(tmp_path: Path) -> None:
    content = arrays(side=65)
    found = read(tmp_path, content)
    assert found.train.images.shape == (30, 1, 21, 22)  # 65 x 66 in squares of 3
    means = content["x_train"][:, :, :63, :66].reshape(30, 1, 21, 3, 22, 3).mean(axis=(3, 5))
    expected = (means - means.mean()) / means.std()
    # float32 against float64: seven digits of values up to about 5
    assert np.abs(found.train.images - expected).max() < 1e-5


def test_a_subset_is_drawn_alike_each_time(tmp_path: Path) -> None:
    first, again = (read(tmp_path, arrays(), 7, test_subset=5) for _ in range(2))
    assert first.train.images.shape[0] == 7
    assert first.test.images.shape[0] == 5
    assert np.array_equal(first.train.images, again.train.images)


def idx(array: NDArray[np.generic]) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 0x08, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(">u1").tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files_reads_as_the_npz_does(tmp_path: Path, packed: bool) -> None:
    content = arrays()
    expected = read(tmp_path, content)
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, array in (
        ("train-images-idx3-ubyte", content["x_train"][:, 0]),
        ("train-labels-idx1-ubyte", content["y_train"]),
        ("t10k-images-idx3-ubyte", content["x_test"][:, 0]),
        ("t10k-labels-idx1-ubyte", content["y_test"]),
    ):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    found = read_images(folder)
    assert np.array_equal(found.train.images, expected.train.images)
    assert np.array_equal(found.test.classes, expected.test.classes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.pop("y_test"), "has no y_test"),
        (lambda c: c.update(x_train=c["x_train"][:, :, :7]), "sides of 8 pixels or more"),
        (lambda c: c.update(x_train=np.zeros((30, 9, 9, 4))), "1 or 3"),
        (lambda c: c.update(x_train=c["x_train"][:-1]), "for 30 labels"),
        (lambda c: c.update(x_train=np.full((30, 9, 9), np.nan)), "not finite"),
        (lambda c: c.update(x_train=np.zeros((30, 9, 9), complex)), "pixels are numbers"),
        (lambda c: c.update(y_train=np.eye(30)), "one label an image"),
        (lambda c: c.update(y_train=np.full(30, 0.5)), "not labels"),
        (lambda c: c.update(y_train=np.full(30, 4)), "fewer than two"),
        (lambda c: c.update(x_test=np.zeros((12, 9, 12))), "test images"),
    ],
)
def test_what_is_no_set_of_labelled_images_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[Arrays], object], why: str
) -> None:
    content = arrays()
    change(content)
    with pytest.raises(UnfitImages, match=why):
        read(tmp_path, content)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(UnfitImages, match=name):
            read_images(tmp_path / name)
    with pytest.raises(UnfitImages, match="0 idx files of train images"):
        read_images(tmp_path)
    for name, content in (
        ("a", b"\0\0\x08\x01\0\0\0\x05abc"),
        ("b", b"PK12"),
        ("c", b"\0\0\x08\x03"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for what in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
            (folder / f"{what}-idx").write_bytes(content)
        with pytest.raises(UnfitImages, match="train-images-idx"):
            read_images(folder)


def test_where_fashion_mnist_is_missing_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.images.FASHION_MNIST", tmp_path / "missing")
    assert FASHION_MNIST.is_absolute()
    with pytest.raises(UnfitImages, match="apt install dataset-fashion-mnist"):
        read_images(tmp_path / "missing")
