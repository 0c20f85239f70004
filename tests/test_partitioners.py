"""Partitioners: every row in exactly one share, as even as was asked."""

from collections.abc import Callable

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError
from prefect_federated.partitioners import (
    PARTITIONERS,
    Rows,
    by_column,
    by_quantity,
    dirichlet,
    iid,
    partition,
    shards,
)

LABELS = np.random.default_rng(0).integers(0, 10, 3000)


def table_of(shares: list[Rows]) -> np.ndarray:
    """Returns rows by share and label: `(n_shares, 10)`."""
    return np.array([np.bincount(LABELS[rows], minlength=10) for rows in shares])


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("count", [1, 2, 8, 100])
def test_each_row_is_in_exactly_one_share_and_the_seed_decides(name: str, count: int) -> None:
    column = np.arange(len(LABELS)) % count

    def made(seed: int) -> list[Rows]:
        return partition(name, LABELS, count, alpha=5.0, labels_each=3, seed=seed, column=column)

    shares, again, other = made(1), made(1), made(2)
    assert len(shares) == count
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(len(LABELS)))
    for one, same in zip(shares, again, strict=True):
        np.testing.assert_array_equal(one, same)
        assert (np.diff(one) > 0).all()
    if count > 1 and name != "by_column":
        assert any(len(a) != len(b) or (a != b).any() for a, b in zip(shares, other, strict=True))


def test_iid_shares_differ_by_one_row_at_most() -> None:
    sizes = [len(rows) for rows in iid(LABELS, 7)]
    assert max(sizes) - min(sizes) == 1
    assert table_of(iid(LABELS, 3)).min() > 60  # of each label about 100


def test_the_smaller_alpha_the_less_even_the_labels() -> None:
    def unevenness(alpha: float) -> float:
        table = table_of(dirichlet(LABELS, 5, alpha=alpha))
        return float((table / table.sum(axis=0)).std())

    assert unevenness(1000.0) < 0.03 < unevenness(1.0) < unevenness(0.1)


def test_by_quantity_makes_uneven_sizes_of_even_labels() -> None:
    even = [len(rows) for rows in by_quantity(LABELS, 5, alpha=1e6)]
    assert max(even) - min(even) < 10
    table = table_of(by_quantity(LABELS, 5, alpha=0.5, seed=3))
    sizes = table.sum(axis=1)
    assert sizes.min() >= 10
    assert sizes.max() > 2 * sizes.min()
    largest = table[sizes.argmax()] / sizes.max()
    assert abs(largest - 0.1).max() < 0.05


@pytest.mark.parametrize("each", [1, 2, 10])
def test_shards_give_each_share_about_so_many_labels_and_even_sizes(each: int) -> None:
    table = table_of(shards(LABELS, 20, labels_each=each))
    assert ((table > 0).sum(axis=1) <= 2 * each).all()
    assert table.sum(axis=1).max() - table.sum(axis=1).min() <= each
    if each == 1:
        assert ((table > 0).sum(axis=1) == 1).sum() >= 10  # at most nine borders lie in a shard


def test_a_natural_column_makes_a_share_of_each_value() -> None:
    hospitals = np.array(["zurich", "bern", "zurich", "basel"])
    assert [rows.tolist() for rows in by_column(hospitals)] == [[3], [1], [0, 2]]
    with pytest.raises(ConfigurationError, match=r"3 distinct values \(basel, bern, zurich\)"):
        by_column(hospitals, 4)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("partitioner", [dirichlet, by_quantity])
def test_alpha_must_be_above_zero(partitioner: Callable[..., list[Rows]], alpha: float) -> None:
    with pytest.raises(ConfigurationError, match=r"alpha is .*write a number above 0"):
        partitioner(LABELS, 3, alpha=alpha)


@pytest.mark.parametrize("name", [name for name in PARTITIONERS if name != "by_column"])
@pytest.mark.parametrize("count", [0, -1, 3001])
def test_a_number_of_shares_that_the_rows_cannot_make_is_refused(name: str, count: int) -> None:
    with pytest.raises(ConfigurationError, match=r"shares"):
        partition(name, LABELS, count)


@pytest.mark.parametrize("each", [0, 11])
def test_labels_of_a_share_are_some_of_those_there_are(each: int) -> None:
    with pytest.raises(ConfigurationError, match=f"labels_each={each}.*write 1 to 10"):
        shards(LABELS, 5, labels_each=each)


def test_more_shards_than_rows_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="7 shares of 2 shards each are more than 10 rows"):
        shards(np.arange(10), 7, labels_each=2)


def test_shares_that_cannot_be_drawn_say_what_to_change() -> None:
    with pytest.raises(ConfigurationError, match="Take fewer sites or a larger alpha"):
        dirichlet(np.zeros(40), 4, alpha=0.1)


def test_an_unknown_partitioner_names_the_choices() -> None:
    with pytest.raises(
        ConfigurationError, match="'random'; choose one of iid, dirichlet, by_quantity, shards, by_"
    ):
        partition("random", LABELS, 3)
    with pytest.raises(ConfigurationError, match="'by_column' needs a column"):
        partition("by_column", LABELS, 3)
    with pytest.raises(ConfigurationError, match="shape"):
        iid(np.zeros((3, 3)), 2)
