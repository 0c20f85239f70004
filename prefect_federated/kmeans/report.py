"""What a person reads of clusters: their centres in the features' own units, and their rows."""

from collections.abc import Mapping, Sequence

from prefect_federated.kmeans.cells import Floats
from prefect_federated.tabular.encoding import Encoding


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


def tables(
    centers: Sequence[Mapping[str, float]], rows: Mapping[str, Sequence[int]]
) -> dict[str, list[list[str]]]:
    """Returns tables of the centres and of the sites' rows by cluster, under their titles.

    Args:
        centers: As `own_units` gives them.
        rows: Site -> rows by cluster; 0 for none, or too few to be told.
    """
    heads = [f"cluster {number}" for number in range(1, len(centers) + 1)]
    values = [[name, *(f"{center[name]:.4g}" for center in centers)] for name in centers[0]]
    sizes = [[site, *(str(each or "-") for each in its)] for site, its in sorted(rows.items())]
    return {
        "Centres, in the features' own units": [["feature", *heads], *values],
        "Training rows by cluster (-: none, or too few to be told)": [["site", *heads], *sizes],
    }
