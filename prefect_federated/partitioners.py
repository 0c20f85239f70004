"""Divides the rows of a labelled data set between sites, evenly or not: for simulations.

Each partitioner returns a list with the row numbers of each share, in rising order; each row is in
exactly one share, and the same seed gives the same shares.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefect_federated.errors import ConfigurationError

Rows: TypeAlias = NDArray[np.int64]
Seed: TypeAlias = int | np.random.Generator

_DRAWS = 1_000


def iid(labels: ArrayLike, shares: int, *, seed: Seed = 0) -> list[Rows]:
    """Deals the rows out at random, in shares that differ by one row at most.

    Raises:
        ConfigurationError: fewer than 1 share, or more than there are rows.
    """
    rows = _shuffled(labels, shares, 1, seed)
    return [np.sort(part) for part in np.array_split(rows, shares)]


def dirichlet(
    labels: ArrayLike, shares: int, *, alpha: float = 1.0, seed: Seed = 0, at_least: int = 10
) -> list[Rows]:
    """Cuts each label's rows in proportions from a Dirichlet distribution.

    Draws again until each share has `at_least` rows.

    Args:
        labels: One a row.
        shares: How many, 1 or more.
        alpha: Above 0: 100 gives nearly even shares of each label, 0.1 gives most of a label's rows
            to one share.
        seed: A number, or a generator to draw from.
        at_least: Rows of the smallest share.

    Raises:
        ConfigurationError: a number out of its range, or no draw of 1,000 gave each share enough
            rows.

    Source: Hsu, Qi and Brown 2019, arXiv 1909.06335, section 3; they draw for each site the
    proportions of the labels, we draw for each label the proportions of the sites.
    """
    values = _checked(labels, shares, at_least)
    _check_alpha(alpha)
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        pieces: list[list[Rows]] = [[] for _ in range(shares)]
        for label in np.unique(values):
            rows = random.permutation(np.flatnonzero(values == label))
            for piece, part in zip(pieces, _cut(rows, shares, alpha, random), strict=True):
                piece.append(part)
        joined = [np.sort(np.concatenate(piece)) for piece in pieces]
        if min(map(len, joined)) >= at_least:
            return joined
    raise _no_draw(len(values), shares, alpha, at_least)


def by_quantity(
    labels: ArrayLike, shares: int, *, alpha: float = 1.0, seed: Seed = 0, at_least: int = 10
) -> list[Rows]:
    """Deals the rows out at random, in shares whose sizes come from a Dirichlet distribution.

    Args:
        labels: One a row; only their number counts.
        shares: How many, 1 or more.
        alpha: Above 0: 100 gives shares of nearly one size, 0.1 gives most rows to a few.
        seed: A number, or a generator to draw from.
        at_least: Rows of the smallest share.

    Raises:
        ConfigurationError: a number out of its range, or no draw of 1,000 gave each share enough
            rows.

    Source: Li, Diao, Chen and He 2022, "Federated Learning on Non-IID Data Silos: An Experimental
    Study", section IV-D, "Quantity skew".
    """
    _check_alpha(alpha)
    random = np.random.default_rng(seed)
    rows = _shuffled(labels, shares, at_least, random)
    for _ in range(_DRAWS):
        parts = _cut(rows, shares, alpha, random)
        if min(map(len, parts)) >= at_least:
            return [np.sort(part) for part in parts]
    raise _no_draw(len(rows), shares, alpha, at_least)


def shards(labels: ArrayLike, shares: int, *, labels_each: int = 2, seed: Seed = 0) -> list[Rows]:
    """Sorts the rows by label, cuts them into even shards and gives each share `labels_each`.

    A share has about so many labels: a shard may lie across the border between two.

    Args:
        labels: One a row.
        shares: How many, 1 or more.
        labels_each: Shards of a share, from 1 to the number of labels.
        seed: A number, or a generator to draw from.

    Raises:
        ConfigurationError: a number out of its range, or more shards than rows.

    Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", section 3, the pathological non-IID partition (200 shards, 2 for each).
    """
    values = _checked(labels, shares, 1)
    distinct = len(np.unique(values))
    if not 1 <= labels_each <= distinct:
        raise ConfigurationError(
            f"shards of labels_each={labels_each} for each share; the data have {distinct} "
            f"labels: write 1 to {distinct}."
        )
    count = shares * labels_each
    if count > len(values):
        raise ConfigurationError(
            f"{shares} shares of {labels_each} shards each are more than {len(values)} rows. Take "
            "fewer sites or fewer labels for each."
        )
    random = np.random.default_rng(seed)
    mixed = random.permutation(len(values))
    pieces = np.array_split(mixed[np.argsort(values[mixed], kind="stable")], count)
    dealt = random.permutation(count).reshape(shares, labels_each)
    return [np.sort(np.concatenate([pieces[place] for place in hand])) for hand in dealt]


def by_column(column: ArrayLike, shares: int | None = None) -> list[Rows]:
    """Gives the rows of each value of a natural column, such as the hospital, to a share.

    Args:
        column: One value a row; the shares are in the order of `numpy.unique(column)`.
        shares: How many are expected; any number if None.

    Raises:
        ConfigurationError: the column has another number of distinct values, or no rows.
    """
    values, found = np.unique(np.asarray(column), return_inverse=True)
    if not len(values) or shares not in (None, len(values)):
        shown = ", ".join(str(value) for value in values[:5])
        raise ConfigurationError(
            f"the column has {len(values)} distinct values ({shown}{', ...' * (len(values) > 5)}), "
            f"and {shares or 'some'} shares are to be made: one for each value."
        )
    return [np.flatnonzero(found == place) for place in range(len(values))]


PARTITIONERS: Mapping[str, Callable[..., list[Rows]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_quantity": by_quantity,
    "shards": shards,
    "by_column": by_column,
}
"""The partitioners by name."""


def partition(
    name: str,
    labels: ArrayLike,
    shares: int,
    *,
    alpha: float = 1.0,
    labels_each: int = 2,
    seed: Seed = 0,
    column: ArrayLike | None = None,
) -> list[Rows]:
    """Returns the shares that the partitioner of a name makes.

    Args:
        name: One of `PARTITIONERS`.
        labels: One a row.
        shares: How many.
        alpha: For `dirichlet` and `by_quantity`.
        labels_each: For `shards`.
        seed: For all but `by_column`.
        column: For `by_column`, one value a row.

    Raises:
        ConfigurationError: an unknown name, or what the partitioner raises.
    """
    if name not in PARTITIONERS:
        raise ConfigurationError(
            f"there is no partitioner {name!r}; choose one of {', '.join(PARTITIONERS)}."
        )
    if name == "dirichlet":
        return dirichlet(labels, shares, alpha=alpha, seed=seed)
    if name == "by_quantity":
        return by_quantity(labels, shares, alpha=alpha, seed=seed)
    if name == "shards":
        return shards(labels, shares, labels_each=labels_each, seed=seed)
    if name == "by_column":
        if column is None:
            raise ConfigurationError("the partitioner 'by_column' needs a column of the data.")
        return by_column(column, shares)
    return iid(labels, shares, seed=seed)


def _checked(labels: ArrayLike, shares: int, at_least: int) -> NDArray[np.generic]:
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ConfigurationError(f"labels have the shape {values.shape}; one a row is expected.")
    if shares < 1 or at_least < 0:
        raise ConfigurationError(
            f"{shares} shares of at least {at_least} rows; write 1 or more, of 0 rows or more."
        )
    if shares * max(at_least, 1) > len(values):
        raise ConfigurationError(
            f"{len(values)} rows are too few for {shares} shares of at least {max(at_least, 1)}. "
            "Take fewer sites or more data."
        )
    return values


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise ConfigurationError(
            f"alpha is {alpha}; write a number above 0: 100 for nearly even shares, 0.1 for very "
            "uneven ones."
        )


def _shuffled(labels: ArrayLike, shares: int, at_least: int, seed: Seed) -> Rows:
    values = _checked(labels, shares, at_least)
    return np.random.default_rng(seed).permutation(len(values))


def _cut(rows: Rows, shares: int, alpha: float, random: np.random.Generator) -> Sequence[Rows]:
    proportions = random.dirichlet(np.full(shares, alpha))
    return np.split(rows, np.round(np.cumsum(proportions)[:-1] * len(rows)).astype(int))


def _no_draw(rows: int, shares: int, alpha: float, at_least: int) -> ConfigurationError:
    return ConfigurationError(
        f"no draw gave each of {shares} shares {at_least} of {rows} rows with alpha={alpha}. Take "
        "fewer sites or a larger alpha."
    )
