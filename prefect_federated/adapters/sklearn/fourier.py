"""Random Fourier features that all sites share, and the kernel's width from pooled sums.

Source: Rahimi and Recht 2007, "Random features for large-scale kernel machines", Algorithm 1:
z(x) = sqrt(2 / D) cos(W'x + b), W from the kernel's Fourier transform, b uniform on [0, 2 pi].
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import RBFSampler

from prefect_federated.errors import UpdateRejected
from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in

Floats = NDArray[np.float64]


def fourier(gamma: float, components: int, seed: int, features: int) -> RBFSampler:
    """Returns the features' map, which is the same wherever it is made.

    Args:
        gamma: The kernel is exp(-gamma ||x - y||^2).
        components: Features that it makes, D.
        seed: Of W and b.
        features: Columns of the rows.
    """
    sampler = RBFSampler(gamma=gamma, n_components=components, random_state=seed)
    return sampler.fit(np.zeros((1, features)))  # only the number of columns is read


def spread(rows: Floats) -> dict[str, Tensor]:
    """Returns number, mean and sum of squared deviations of all cells of a site's encoded rows."""
    mean = float(rows.mean())
    return {"spread": np.array([rows.size, mean, float(np.square(rows - mean).sum())])}


def scale_gamma(sites: Mapping[str, Mapping[str, Tensor]], features: int) -> float:
    """Returns scikit-learn's gamma="scale" of the pooled rows: 1 / (features x variance of cells).

    Args:
        sites: Site -> what `spread` gave there.
        features: Columns of the rows.

    Raises:
        UpdateRejected: a site has sent something else.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation
    2.1, for the merging.
    """
    n, mean, squares = 0.0, 0.0, 0.0
    for site in sorted(sites):
        its = numbers_in(sites[site], {"spread": (3,)}, site)["spread"]
        its_n, its_mean, its_squares = (float(each) for each in its)
        if its_n < 1 or its_squares < 0:
            raise UpdateRejected(f"site {site!r}: its 'spread' is of no rows.")
        total = n + its_n
        distance = its_mean - mean
        squares += its_squares + distance**2 * n * its_n / total
        mean += distance * its_n / total
        n = total
    variance = squares / n if n else 0.0
    return 1.0 / (features * variance) if variance > 0 else 1.0
