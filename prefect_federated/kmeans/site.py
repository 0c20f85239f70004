"""The site's part of k-means: built in, so that a site has nothing to write.

It answers `columns` and `moments`, then `groups` once, `cells` in each round, `evaluate` and
`alone`. What leaves is in docs/k-means.md.
"""

import numpy as np

from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, executor
from prefect_federated.kmeans import cells as lloyd
from prefect_federated.kmeans.cells import Floats, distances
from prefect_federated.kmeans.search import Search
from prefect_federated.kmeans.seeding import FEWEST, seeds, summary
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.access import policy_of
from prefect_federated.tabular.encoding import Encoding, answer_moments
from prefect_federated.tabular.rows import describe, load_rows


@executor
def columns(model: Tensors, site: Site) -> Update:
    """Returns what the site's table has: columns and rows."""
    return describe(site)


@executor
def moments(model: Tensors, site: Site) -> Update:
    """Returns count, mean and squared deviations of the training rows' columns."""
    return answer_moments(site)


@executor
def groups(model: Tensors, site: Site) -> Update:
    """Returns the means of groups of training rows, and how many rows each has."""
    rows = _encoded(site)
    random = np.random.default_rng(site.seed)
    points, weights = summary(rows, int(site.number("clusters", 1)), _least(site), random)
    return Update({"points": points, "weights": weights}, weight=len(rows))


@executor
def cells(model: Tensors, site: Site) -> Update:
    """Returns the sums of training rows by their nearest centre, for each restart."""
    rows = _encoded(site)
    found = lloyd.cells(rows, np.asarray(model["centers"], np.float64), _least(site))
    return Update(found.tensors(), weight=len(rows))


@executor
def evaluate(model: Tensors, site: Site) -> Update:
    """Measures centres, "`(n_clusters, n_columns)`", on the test rows."""
    encoding = Encoding.from_json(site.config["encoding"])
    rows = encoding.transform(load_rows(site).test.features)
    return Update(metrics=measured(rows, model["centers"]), metrics_weight=len(rows))


@executor
def alone(model: Tensors, site: Site) -> Update:
    """Finds centres in the site's rows only, and measures them on its test rows.

    Rows are encoded as for all sites, so that the inertia is in the same units.
    """
    rows = _encoded(site)
    random = np.random.default_rng(site.seed)
    clusters, restarts = int(site.number("clusters", 1)), int(site.number("restarts", 1))
    points, weights = summary(rows, clusters, 1, random)
    first = seeds(points, weights, clusters, restarts, random)
    search = Search(first, points, weights, site.number("tolerance", 1e-6))
    for _ in range(int(site.number("rounds", 100))):
        search.take({"": lloyd.cells(rows, search.asked, 1)})
        if search.is_done:
            break
    encoding = Encoding.from_json(site.config["encoding"])
    tested = encoding.transform(load_rows(site).test.features)
    metrics = measured(tested, search.centers[search.best])
    return Update(metrics=metrics, metrics_weight=len(tested))


def measured(rows: Floats, centers: Floats) -> dict[str, float]:
    """Returns the inertia a row, and the mean of the simplified silhouettes; none without rows.

    Source: Hruschka, Campello and de Castro 2006, "Evolving clusters in gene-expression data",
    equation 2, with distances to centres in place of those to all rows.
    """
    if not len(rows):
        return {}
    apart = distances(rows, np.asarray(centers, np.float64))
    found = {"inertia_per_row": float(apart.min(axis=1).mean())}
    if len(centers) > 1:
        own, next_one = np.sqrt(np.partition(apart, 1, axis=1)[:, :2]).T
        found["silhouette"] = float(
            np.mean(np.where(next_one > 0, 1 - own / np.where(next_one > 0, next_one, 1), 0))
        )
    return found


def _encoded(site: Site) -> Floats:
    """Returns the encoded training rows.

    Raises:
        ConfigurationError: too few rows for a group.
    """
    rows = load_rows(site).train
    if rows.rows < max(FEWEST, _least(site)):
        raise ConfigurationError(
            f"site {site.name!r} has {rows.rows} training rows; a group of them needs "
            f"{max(FEWEST, _least(site))}. Leave the site out, or bring more rows."
        )
    return Encoding.from_json(site.config["encoding"]).transform(rows.features)


def _least(site: Site) -> int:
    """Returns how many rows a sum must be of, by the site's own policy."""
    return max(1, policy_of(site).small_cell)
