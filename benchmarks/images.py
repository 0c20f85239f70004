"""Labelled image sets as they lie on disk: an `.npz` file, or a folder of idx files.

What comes out has one form, whatever the set: `(n, channels, height, width)` float32, standardized,
and class numbers from 0. Nothing is downloaded.
"""

import gzip
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CHANNELS = (1, 3)
_SMALLEST = 8
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class UnfitImages(ValueError):
    """What was given is no set of labelled images; the message says what is wrong with it."""


@dataclass(frozen=True)
class Examples:
    """Images `(n, channels, height, width)`, float32, and their classes `(n,)`, int64."""

    images: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Training and test examples; `labels` are the set's own names of the classes, in order."""

    train: Examples
    test: Examples
    labels: tuple[str, ...]


def read_images(
    path: Path,
    subset: int | None = None,
    *,
    test_subset: int | None = None,
    seed: int = 0,
    largest: int = 32,
) -> ImageSet:
    """Returns a set of labelled images.

    Each channel is shifted and scaled to mean 0 and standard deviation 1 over the training images.
    Images with a side of more than `largest` pixels are made smaller by the mean over squares.

    Args:
        path: An `.npz` file with `x_train`, `y_train`, `x_test` and `y_test`, or a folder with idx
            files of the same, as they are or gzipped, with "train" or "t10k" or "test" and "images"
            or "labels" in their names. Images are grey or RGB: `(n, h, w)`, `(n, h, w, 1 or 3)` or
            `(n, 1 or 3, h, w)`, 8 x 8 or larger.
        subset: Training images to draw, without putting back; all if None.
        test_subset: Test images to draw; all if None.
        seed: The same seed draws the same images.
        largest: Pixels of the longer side at most.

    Raises:
        UnfitImages: something else is there.
    """
    arrays = _read_idx_folder(path) if path.is_dir() else _read_npz(path)
    random = np.random.default_rng(seed)
    labels = np.unique(np.concatenate([_labels(arrays[name], name) for name in _ARRAYS[1::2]]))
    halves = []
    for images_name, labels_name, drawn in (
        (*_ARRAYS[:2], subset),
        (*_ARRAYS[2:], test_subset),
    ):
        images, own = arrays[images_name], _labels(arrays[labels_name], labels_name)
        if images.ndim < 3 or len(images) != len(own):
            raise UnfitImages(
                f"{path}: {images_name} has the shape {images.shape} for {len(own)} labels; it "
                "must be (n, h, w), (n, h, w, 1 or 3) or (n, 1 or 3, h, w), one label an image."
            )
        rows = np.sort(random.permutation(len(own))[:drawn])
        pixels = _smaller(_channels_first(images[rows], f"{path}: {images_name}"), largest)
        halves.append(Examples(pixels, np.searchsorted(labels, own[rows]).astype(np.int64)))
    train, test = halves
    if len(np.unique(train.classes)) < 2:
        raise UnfitImages(f"{path}: the training images have fewer than two different labels.")
    if not len(test.classes) or test.images.shape[1:] != train.images.shape[1:]:
        raise UnfitImages(
            f"{path}: training images are {train.images.shape[1:]}, test images "
            f"{test.images.shape[1:]} (channels, height, width), {len(test.classes)} of them."
        )
    mean = train.images.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    spread = train.images.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    spread[spread == 0] = 1
    train, test = (
        Examples(((half.images - mean) / spread).astype(np.float32), half.classes)
        for half in (train, test)
    )
    return ImageSet(train, test, labels=tuple(str(label) for label in labels))


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.exists():
        package = "dataset-fashion-mnist"
        hint = (
            f" Fashion-MNIST comes with the Debian package {package} (apt install {package})."
            if path == FASHION_MNIST
            else ""
        )
        raise UnfitImages(f"{path} is not there: name an .npz file or a folder of idx files.{hint}")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UnfitImages(f"{path} is one array, not an .npz file of four.")
        with file:
            if missing := [name for name in _ARRAYS if name not in file.files]:
                raise UnfitImages(
                    f"{path} has no {', '.join(missing)}; it has: {', '.join(file.files)}."
                )
            return {name: file[name] for name in _ARRAYS}
    except UnfitImages:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UnfitImages(f"{path} cannot be read as an .npz file: {error}") from error


def _read_idx_folder(folder: Path) -> dict[str, NDArray[np.generic]]:
    names = {}
    for array, halves, what in (
        ("x_train", ("train",), "images"),
        ("y_train", ("train",), "labels"),
        ("x_test", ("t10k", "test"), "images"),
        ("y_test", ("t10k", "test"), "labels"),
    ):
        found = {
            file.name.removesuffix(".gz"): file
            for file in sorted(folder.iterdir(), reverse=True)  # a gzipped one goes first, if both
            if file.is_file()
            and "idx" in file.name
            and what in file.name
            and any(half in file.name for half in halves)
        }
        if len(found) != 1:
            raise UnfitImages(
                f"{folder} has {len(found)} idx files of {halves[-1]} {what}"
                f"{': ' if found else ''}{', '.join(found)}; it must have one, such as "
                f"{halves[0]}-{what}-idx{3 if what == 'images' else 1}-ubyte.gz."
            )
        names[array] = found.popitem()[1]
    return {array: read_idx(file) for array, file in names.items()}


def read_idx(path: Path) -> NDArray[np.generic]:
    """Returns the array in an idx file, gzipped if its name ends in `.gz`.

    Raises:
        UnfitImages: it is no idx file, or not a whole one.

    Source: the format at the end of LeCun, Cortes and Burges, "The MNIST database".
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UnfitImages(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UnfitImages(f"{path} is not an idx file: it begins with {content[:4].hex()!r}.")
    dtype, dimensions = np.dtype(_IDX_TYPES[content[2]]), content[3]
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise UnfitImages(f"{path} ends within its header.")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - begin != math.prod(shape) * dtype.itemsize:
        raise UnfitImages(
            f"{path} has {len(content) - begin} bytes of data; its header says {shape} of "
            f"{dtype.name}."
        )
    return np.frombuffer(content, dtype, offset=begin).reshape(shape)


def _labels(labels: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """Returns labels as `(n,)`; `(n, 1)` is taken, too."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not len(flat):
        raise UnfitImages(
            f"{name} has the shape {labels.shape}; it must hold one label an image, (n,)."
        )
    if np.issubdtype(flat.dtype, np.floating) and not _are_whole(flat.astype(np.float64)):
        raise UnfitImages(f"{name} holds fractions or values that are not finite, not labels.")
    if flat.dtype.kind not in "biufUS":
        raise UnfitImages(f"{name} is {flat.dtype}; labels are whole numbers or text.")
    return flat.astype(np.int64) if flat.dtype.kind in "biuf" else flat


def _channels_first(images: NDArray[np.generic], where: str) -> NDArray[np.float32]:
    """Returns images as `(n, channels, h, w)`."""
    if images.dtype.kind not in "biuf":
        raise UnfitImages(f"{where} is {images.dtype}; pixels are numbers.")
    if images.ndim == 3:
        ordered = images[:, np.newaxis]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS:
        ordered = images.transpose(0, 3, 1, 2)
    else:
        ordered = images
    if ordered.ndim != 4 or ordered.shape[1] not in _CHANNELS or min(ordered.shape[2:]) < _SMALLEST:
        raise UnfitImages(
            f"{where} has the shape {images.shape}; it must be (n, h, w), (n, h, w, 1 or 3) or "
            f"(n, 1 or 3, h, w), with sides of {_SMALLEST} pixels or more."
        )
    pixels = np.ascontiguousarray(ordered, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise UnfitImages(f"{where} has pixels that are not finite.")
    return pixels


def _are_whole(numbers: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(numbers).all() and (numbers == np.round(numbers)).all())


def _smaller(images: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """Returns the means over squares of pixels, so that no side is above `largest`."""
    side = math.ceil(max(images.shape[2:]) / largest)
    if side == 1:
        return images
    n, channels, height, width = images.shape
    rows, columns = max(height // side, 1), max(width // side, 1)
    cut = images[:, :, : rows * side, : columns * side]
    squares = cut.reshape(n, channels, rows, side, columns, side)
    return np.asarray(squares.mean(axis=(3, 5), dtype=np.float32))
