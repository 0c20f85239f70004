"""Cross-products of columns about their means, and how those of many sites become one.

The Gram matrix of least squares in the form that loses no digits: each site takes its products
about its own means, and the server adds what the means differ by. All of it is one round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from prefect_federated.errors import UpdateRejected
from prefect_federated.linear.losses import Floats
from prefect_federated.messages import Tensor
from prefect_federated.tabular.answers import numbers_in


@dataclass(frozen=True)
class Gram:
    """Products of the columns of some rows about their means; the label is the last column.

    Args:
        rows: Number of rows.
        means: "`(n_columns + 1,)`".
        products: "`(n_columns + 1, n_columns + 1)`": sums of products of deviations.
    """

    rows: float
    means: Floats
    products: Floats

    def tensors(self) -> dict[str, Tensor]:
        """Returns the matrix as it travels."""
        return {"rows": np.array([self.rows]), "means": self.means, "products": self.products}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], columns: int, site: str) -> "Gram":
        """Reads what a site has sent.

        Raises:
            UpdateRejected: it is not that of so many columns and a label.
        """
        shapes = {"rows": (1,), "means": (columns + 1,), "products": (columns + 1, columns + 1)}
        its = numbers_in(tensors, shapes, site, of="the Gram matrix's")
        if its["rows"][0] < 1:
            raise UpdateRejected(f"site {site!r}: its Gram matrix is of {its['rows'][0]} rows.")
        return cls(float(its["rows"][0]), its["means"], its["products"])


def gram_of(design: Floats, label: Floats) -> Gram:
    """Returns the products of a site's rows.

    Args:
        design: "`(rows, n_columns)`", without a column of ones.
        label: "`(rows,)`".

    >>> gram_of(np.array([[0.0], [2.0]]), np.array([1.0, 3.0])).products.tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """
    whole = np.column_stack([design, label])
    means = whole.mean(axis=0)
    about = whole - means
    return Gram(len(label), means, about.T @ about)


def merge(parts: Iterable[Gram]) -> Gram:
    """Returns the products of all rows together.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equation
    2.1b, for products of two columns.
    """
    merged: Gram | None = None
    for part in parts:
        if merged is None:
            merged = part
            continue
        rows = merged.rows + part.rows
        apart = part.means - merged.means
        merged = Gram(
            rows,
            merged.means + apart * (part.rows / rows),
            merged.products
            + part.products
            + np.outer(apart, apart) * (merged.rows * part.rows / rows),
        )
    if merged is None:
        raise ValueError("no parts to merge")
    return merged
