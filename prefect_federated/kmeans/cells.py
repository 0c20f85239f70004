"""What a site computes for Lloyd's algorithm: the sums of its rows by their nearest centre.

Many restarts are computed at once. A centre with too few of a site's rows gets none of them: they
are counted with the nearest other centre that has enough, so no sum is that of a few rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Sums of a site's rows by centre, for each restart.

    Args:
        inertia: Sum of squared distances to the nearest centre, "`(n_restarts,)`"; of all rows as
            they are.
        sums: "`(n_restarts, n_clusters, n_columns)`".
        counts: "`(n_restarts, n_clusters)`": 0, or at least as many as the site's policy asks for.
    """

    inertia: Floats
    sums: Floats
    counts: Floats

    def tensors(self) -> dict[str, Tensor]:
        """Returns the sums as they travel."""
        return {"inertia": self.inertia, "sums": self.sums, "counts": self.counts}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shape: tuple[int, ...], site: str) -> "Cells":
        """Reads what a site has sent.

        Raises:
            UpdateRejected: it does not fit centres of this shape.
        """
        shapes = {"inertia": shape[:1], "sums": shape, "counts": shape[:2]}
        its = numbers_in(tensors, shapes, site, not_negative=("inertia", "counts"))
        return cls(its["inertia"], its["sums"], its["counts"])


def distances(rows: Floats, centers: Floats) -> Floats:
    """Returns "`(n_rows, n_clusters)`" squared distances of rows to centres.

    >>> distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    found = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centers.T + (centers**2).sum(axis=1)
    kept: Floats = np.maximum(found, 0)
    return kept


def inertia(rows: Floats, centers: Floats, nearest: NDArray[np.intp], weights: Floats) -> float:
    """Returns the weighted sum of squared distances of rows to the centres of their own."""
    return float(weights @ ((rows - centers[nearest]) ** 2).sum(axis=1))


def cells(rows: Floats, centers: Floats, least: int, weights: Floats | None = None) -> Cells:
    """Returns the sums of rows by their nearest centre.

    Args:
        rows: "`(n_rows, n_columns)`".
        centers: "`(n_restarts, n_clusters, n_columns)`".
        least: Rows that a centre must have, or they are counted with another one's.
        weights: Of the rows; 1 each if None.

    Source: Lloyd 1982, "Least Squares Quantization in PCM", section III, method I.
    """
    weights = np.ones(len(rows)) if weights is None else weights
    restarts, clusters = centers.shape[:2]
    found = Cells(np.zeros(restarts), np.zeros(centers.shape), np.zeros((restarts, clusters)))
    for number, place in enumerate(centers):
        apart = distances(rows, place)
        nearest = apart.argmin(axis=1)
        found.inertia[number] = inertia(rows, place, nearest, weights)
        nearest = merged(apart, nearest, least)
        members = nearest[:, None] == np.arange(clusters)
        weighted = members * weights[:, None]
        found.counts[number] = weighted.sum(axis=0)
        found.sums[number] = weighted.T @ rows
    return found


def merged(apart: Floats, nearest: NDArray[np.intp], least: int) -> NDArray[np.intp]:
    """Returns the rows' centres, after those of centres with too few rows went to other ones.

    The centre with the fewest rows gives its rows away first, each to its nearest centre that still
    has some.
    """
    nearest = nearest.copy()
    counts = np.bincount(nearest, minlength=apart.shape[1])
    while ((counts > 0) & (counts < least)).any() and (counts > 0).sum() > 1:
        smallest = int(np.where(counts > 0, counts, len(nearest) + 1).argmin())
        is_moved = nearest == smallest
        counts[smallest] = 0
        open_to = np.where(counts > 0, apart[is_moved], np.inf)
        nearest[is_moved] = open_to.argmin(axis=1)
        counts = np.bincount(nearest, minlength=apart.shape[1])
    return nearest
