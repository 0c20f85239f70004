"""Divides scikit-learn's digits between sites, unevenly, into a folder a site.

python examples/digits/prepare.py data/digits --sites 4 --alpha 1.0 --seed 0
"""

from collections.abc import Sequence
from pathlib import Path

import cyclopts
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TEST_SHARE = 0.2


def divide(
    folder: Path, sites: int | Sequence[str] = 4, alpha: float = 1.0, seed: int = 0
) -> dict[str, Path]:
    """Writes `<folder>/<site>/digits.npz` for each site; returns site -> its folder.

    Each file holds the site's own training images and the test images, which all sites share.

    Args:
        folder: Where the sites' folders go.
        sites: Their names, or how many: site-1, site-2, ...
        alpha: Of the Dirichlet distribution: 100 gives nearly even shares of each digit, 0.1 gives
            most of a digit's images to one site.
        seed: The same seed gives the same shares.
    """
    names = [f"site-{n}" for n in range(1, sites + 1)] if isinstance(sites, int) else list(sites)
    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    test, train = np.split(order, [round(TEST_SHARE * len(order))])
    folders = {}
    for name, share in zip(
        names, dirichlet_shares(labels[train], len(names), alpha, random), strict=True
    ):
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


def dirichlet_shares(
    labels: NDArray[np.int64],
    shares: int,
    alpha: float,
    random: np.random.Generator,
    at_least: int = 10,
) -> list[NDArray[np.int64]]:
    """Returns, for each share, the rows of `labels` in it; each row is in exactly one share.

    Each label's rows are cut in proportions drawn from a Dirichlet distribution, again until each
    share has `at_least` rows.

    Raises:
        ValueError: no draw of 1,000 gave each share enough rows.

    Source: Hsu, Qi and Brown 2019, arXiv 1909.06335, section 3; they draw for each site the
    proportions of the labels, we draw for each label the proportions of the sites.
    """
    for _ in range(1_000):
        pieces: list[list[NDArray[np.int64]]] = [[] for _ in range(shares)]
        for label in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == label))
            proportions = random.dirichlet(np.full(shares, alpha))
            cuts = np.round(np.cumsum(proportions)[:-1] * len(rows)).astype(int)
            for piece, part in zip(pieces, np.split(rows, cuts), strict=True):
                piece.append(part)
        joined = [np.sort(np.concatenate(piece)) for piece in pieces]
        if min(len(rows) for rows in joined) >= at_least:
            return joined
    raise ValueError(
        f"no draw gave each of {shares} shares {at_least} of {len(labels)} rows with "
        f"alpha={alpha}. Take fewer sites or a larger alpha."
    )


def command(folder: Path, sites: int = 4, alpha: float = 1.0, seed: int = 0) -> None:
    """Divides scikit-learn's digits between sites, into a folder a site."""
    for name, own in divide(folder, sites, alpha, seed).items():
        with np.load(own / "digits.npz") as arrays:
            print(f"{name}: {np.bincount(arrays['train_y'], minlength=10)} images of each digit")


if __name__ == "__main__":
    cyclopts.run(command)
