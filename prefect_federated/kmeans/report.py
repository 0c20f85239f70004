"""What a person reads of clusters: their centres in the features' own units, and their rows."""

from collections.abc import Mapping, Sequence

from prefect_federated.kmeans.cells import Floats
from prefect_federated.tabular.encoding import Encoding

MOST_COLUMNS = 30
"""Columns that the table of centres shows."""


def own_units(encoding: Encoding, centers: Floats) -> list[dict[str, float]]:
    """Returns each centre as column -> value in the feature's own units.

    A column "feature=category" has the share of the cluster's rows that are of it.

    Args:
        encoding: How the sites have encoded their features.
        centers: "`(n_clusters, n_columns)`".
    """
    names = encoding.names
    return [
        {
            name: float(value) * encoding.scale.get(name, 1.0) + encoding.mean.get(name, 0.0)
            for name, value in zip(names, center, strict=True)
        }
        for center in centers
    ]


def markdown(
    centers: Sequence[Mapping[str, float]],
    rows: Mapping[str, Sequence[int]],
    inertia: Sequence[float],
) -> str:
    """Returns the tables of centres, and of the sites' rows by cluster.

    Args:
        centers: As `own_units` gives them.
        rows: Site -> rows by cluster; 0 for too few to be told.
        inertia: By round.
    """
    heads = [f"cluster {number}" for number in range(1, len(centers) + 1)]
    names = list(centers[0])
    table = [
        [name.replace("|", "\\|"), *(f"{center[name]:.4g}" for center in centers)]
        for name in names[:MOST_COLUMNS]
    ]
    more = len(names) - MOST_COLUMNS
    sizes = [[site, *(str(each or "-") for each in its)] for site, its in sorted(rows.items())]
    return "\n\n".join(
        [
            "## Clusters",
            f"Inertia {inertia[0]:.6g} in the first round, {inertia[-1]:.6g} in the last, of "
            f"{len(inertia)}. Centres in the features' own units:",
            _table(["feature", *heads], table),
            *([f"and {more} more columns"] if more > 0 else []),
            "Training rows by cluster; - for none, or too few to be told, which are counted with a "
            "cluster nearby:",
            _table(["site", *heads], sizes),
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
