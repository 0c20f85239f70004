"""Divides scikit-learn's digits between sites, unevenly, into a folder a site.

python examples/digits/prepare.py data/digits --sites 4 --alpha 1.0 --seed 0
"""

from collections.abc import Sequence
from pathlib import Path

import cyclopts
import numpy as np
from sklearn.datasets import load_digits

from prefect_federated.errors import ConfigurationError
from prefect_federated.partitioners import partition

TEST_SHARE = 0.2


def divide(
    folder: Path,
    sites: int | Sequence[str] = 4,
    alpha: float = 1.0,
    seed: int = 0,
    partitioner: str = "dirichlet",
    labels_each: int = 2,
) -> dict[str, Path]:
    """Writes `<folder>/<site>/digits.npz` for each site; returns site -> its folder.

    Each file holds the site's own training images and the test images, which all sites share.

    Args:
        folder: Where the sites' folders go.
        sites: Their names, or how many: site-1, site-2, ...
        alpha: Of the Dirichlet distribution: 100 gives nearly even shares of each digit, 0.1 gives
            most of a digit's images to one site.
        seed: The same seed gives the same shares.
        partitioner: "dirichlet", "iid", "by_quantity" or "shards".
        labels_each: Of "shards": about how many digits a site has.

    Raises:
        ConfigurationError: an unknown partitioner, or shares that it cannot make.
    """
    names = [f"site-{n}" for n in range(1, sites + 1)] if isinstance(sites, int) else list(sites)
    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    test, train = np.split(order, [round(TEST_SHARE * len(order))])
    shares = partition(
        partitioner, labels[train], len(names), alpha=alpha, labels_each=labels_each, seed=random
    )
    folders = {}
    for name, share in zip(names, shares, strict=True):
        own = train[share]
        folders[name] = folder / name
        folders[name].mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folders[name] / "digits.npz",
            train_x=images[own],
            train_y=labels[own],
            test_x=images[test],
            test_y=labels[test],
        )
    return folders


def command(
    folder: Path,
    sites: int = 4,
    alpha: float = 1.0,
    seed: int = 0,
    partitioner: str = "dirichlet",
    labels_each: int = 2,
    picture: Path | None = None,
) -> None:
    """Divides scikit-learn's digits between sites, into a folder a site.

    Args:
        folder: Where the sites' folders go.
        sites: How many.
        alpha: Of the partitioners dirichlet and by_quantity: the smaller, the less even.
        seed: The same seed gives the same shares.
        partitioner: dirichlet, iid, by_quantity or shards.
        labels_each: Of the partitioner shards: about how many digits a site has.
        picture: A PNG to draw the split into.
    """
    try:
        folders = divide(folder, sites, alpha, seed, partitioner, labels_each)
    except ConfigurationError as error:
        raise SystemExit(str(error)) from None
    labels = {}
    for name, own in folders.items():
        with np.load(own / "digits.npz") as arrays:
            labels[name] = arrays["train_y"]
        print(f"{name}: {np.bincount(labels[name], minlength=10)} images of each digit")
    if picture is not None:
        from prefect_federated.adapters.split_picture import split_png  # needs matplotlib

        ends = np.cumsum([len(own) for own in labels.values()])
        parts = np.split(np.arange(ends[-1]), ends[:-1])
        every = np.concatenate(list(labels.values()))
        picture.write_bytes(split_png(every, parts, names=list(labels), title=partitioner))


if __name__ == "__main__":
    cyclopts.run(command)
