"""Where the centres begin: k-means++ on means of groups of rows of all sites, never on rows.

Each site sums its rows up as the means of small groups, and the server seeds from these, weighted
by their rows. So the first centres are of all sites, and none is one site's row.
"""

import math

import numpy as np

from prefect_federated.errors import ModelUndetermined
from prefect_federated.kmeans.cells import Floats, cells, distances

GROUPS_A_CLUSTER = 8
"""Groups for each cluster that a site sums its rows up in, if it has the rows."""
FEWEST = 5
"""Rows of a group, at least, whatever the site's policy allows."""
DRAWS = 10
"""Draws of first centres for each restart, from which the best different ones are kept."""
SAMPLE = 10_000
"""Rows at most from which a site makes its groups; all are counted in them."""
STEPS = 30
"""Steps of Lloyd's algorithm on the groups' means, and on a site's rows when it makes groups."""


def summary(
    rows: Floats, clusters: int, least: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Returns the means of a site's groups of rows, and how many rows each has.

    Args:
        rows: "`(n_rows, n_columns)`".
        clusters: Clusters that are looked for.
        least: Rows that a group must have.
        random: For its own k-means++.

    Returns:
        "`(n_groups, n_columns)`" and "`(n_groups,)`".

    Source: Guha, Meyerson, Mishra, Motwani and O'Callaghan 2003, "Clustering Data Streams: Theory
    and Practice", section 3.2: clusters of the weighted centres of parts are nearly those of all.
    """
    groups = max(1, min(GROUPS_A_CLUSTER * clusters, len(rows) // max(least, FEWEST)))
    some = rows if len(rows) <= SAMPLE else rows[random.choice(len(rows), SAMPLE, replace=False)]
    weights = np.ones(len(some))
    centers = _settled(some, weights, plus_plus(some, weights, groups, random)[None])
    found = cells(rows, centers, max(least, FEWEST))
    is_used = found.counts[0] > 0
    return found.sums[0][is_used] / found.counts[0][is_used, None], found.counts[0][is_used]


def seeds(
    points: Floats, weights: Floats, clusters: int, restarts: int, random: np.random.Generator
) -> Floats:
    """Returns first centres, "`(n_restarts, n_clusters, n_columns)`".

    Args:
        points: Means of the sites' groups, "`(n_groups, n_columns)`".
        weights: Their rows.
        clusters: How many.
        restarts: How often, each with other draws.
        random: For the draws: ten for each restart. Those with the least inertia of the groups, and
            different ones, are kept.

    Raises:
        ModelUndetermined: fewer different groups than clusters.
    """
    different = len(np.unique(points, axis=0))
    if different < clusters:
        raise ModelUndetermined(
            f"the sites' rows make {different} different groups of at least {FEWEST} rows, and "
            f"{clusters} clusters are asked for. Ask for {different} or fewer, or bring more rows."
        )
    drawn = [plus_plus(points, weights, clusters, random) for _ in range(restarts * DRAWS)]
    settled = _settled(points, weights, np.stack(drawn))
    inertia = cells(points, settled, 1, weights).inertia
    _, different_ones = np.unique(inertia.round(9), return_index=True)  # the best first
    found = [settled[each] for each in different_ones[:restarts]]
    return np.stack([*found, *drawn[: restarts - len(found)]])


def _settled(rows: Floats, weights: Floats, centers: Floats) -> Floats:
    """Returns the centres after steps of Lloyd's algorithm on weighted rows."""
    for _ in range(STEPS):
        part = cells(rows, centers, 1, weights)
        is_used = part.counts[..., None] > 0
        moved = np.where(is_used, part.sums / np.where(is_used, part.counts[..., None], 1), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def plus_plus(
    points: Floats, weights: Floats, clusters: int, random: np.random.Generator
) -> Floats:
    """Returns "`(n_clusters, n_columns)`" points, drawn far from each other.

    Source: Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", section
    2.2, with the best of `2 + log(k)` draws at each step, as their section 5 proposes.
    """
    tries = 2 + int(math.log(clusters))
    chosen = [int(random.choice(len(points), p=weights / weights.sum()))]
    nearest = distances(points, points[chosen])[:, 0]
    while len(chosen) < clusters:
        chance = weights * nearest
        chance[chosen] = 0
        total = chance.sum()
        if total > 0:
            drawn = random.choice(len(points), size=tries, p=chance / total)
        else:
            drawn = random.choice(np.setdiff1d(np.arange(len(points)), chosen), size=1)
        apart = np.minimum(distances(points, points[drawn]).T, nearest)
        best = int((apart @ weights).argmin())
        chosen.append(int(drawn[best]))
        nearest = apart[best]
    return points[chosen]


def far_points(points: Floats, weights: Floats, centers: Floats, number: int) -> Floats:
    """Returns the points that add most to the inertia, one after another, for empty centres."""
    nearest = distances(points, centers).min(axis=1)
    found = []
    for _ in range(number):
        far = int((weights * nearest).argmax())
        found.append(points[far])
        nearest = np.minimum(nearest, distances(points, points[far][None])[:, 0])
    return np.array(found)
