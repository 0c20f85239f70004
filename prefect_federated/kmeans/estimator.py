"""The centres as a fitted scikit-learn KMeans, of encoded columns. Needs the extra `sklearn`."""

from typing import Any

import numpy as np

from prefect_federated.kmeans.cells import Floats


def estimator_of(centers: Floats, inertia: float, rounds: int, restarts: int) -> Any:
    """Returns the fitted estimator; it has no `labels_`, which are the sites' own.

    Args:
        centers: "`(n_clusters, n_columns)`".
        inertia: Of the sites' rows.
        rounds: Rounds of Lloyd's algorithm.
        restarts: For its `n_init`.
    """
    from sklearn.cluster import KMeans

    found = KMeans(len(centers), n_init=restarts)
    found.cluster_centers_ = np.ascontiguousarray(centers, np.float64)
    found.inertia_, found.n_iter_ = inertia, rounds
    found.n_features_in_ = centers.shape[1]
    found._n_features_out = len(centers)
    found._n_threads = 1
    return found
