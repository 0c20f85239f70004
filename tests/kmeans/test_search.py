"""Federated k-means without a network, against scikit-learn's on the pooled rows."""

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import homogeneity_score

from prefect_federated.errors import ModelUndetermined, UpdateRejected
from prefect_federated.kmeans.cells import Cells, Floats, cells, distances, merged
from prefect_federated.kmeans.search import Search
from prefect_federated.kmeans.seeding import far_points, seeds, summary

RESTARTS = 10


def run(
    sites: Sequence[Floats],
    clusters: int,
    *,
    least: int = 5,
    seed: int = 0,
    tolerance: float = 1e-9,
    absent: Sequence[int] = (),
) -> Search:
    """All rounds; after each of them the search goes through a snapshot."""
    parts = [
        summary(rows, clusters, least, np.random.default_rng([seed, number]))
        for number, rows in enumerate(sites)
    ]
    points = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[1] for part in parts])
    random = np.random.default_rng(seed)
    search = Search(seeds(points, weights, clusters, RESTARTS, random), points, weights, tolerance)
    for number in range(1, 200):
        asked = search.asked
        search.take(
            {
                str(place): cells(rows, asked, least)
                for place, rows in enumerate(sites)
                if not (number in absent and place == 0)
            }
        )
        if search.is_done:
            return search
        search = Search.restored(search.tensors(), tolerance)
    raise AssertionError("not done")


def inertia_of(rows: Floats, centers: Floats) -> float:
    return float(distances(rows, centers).min(axis=1).sum())


def iris() -> tuple[Floats, Floats]:
    rows, kinds = load_iris(return_X_y=True)
    return rows, kinds


def scaled_cancer() -> Floats:
    rows = load_breast_cancer().data
    scaled: Floats = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return scaled


@pytest.mark.parametrize(
    ("named", "clusters"), [("iris", 2), ("iris", 3), ("breast_cancer", 2), ("breast_cancer", 8)]
)
@pytest.mark.parametrize("by_label", [False, True])
def test_inertia_is_that_of_pooled_scikit_learn_and_never_rises(
    named: str, clusters: int, by_label: bool
) -> None:
    rows = iris()[0] if named == "iris" else scaled_cancer()
    order = np.arange(len(rows)) if by_label else np.random.default_rng(2).permutation(len(rows))
    sites = [rows[part] for part in np.array_split(order, 3)]
    pooled = KMeans(clusters, n_init=RESTARTS, random_state=0).fit(rows).inertia_
    for seed in range(3):
        search = run(sites, clusters, seed=seed)
        assert (np.diff(search.curve) <= 0).all()
        found = inertia_of(rows, search.centers[search.best])
        assert found == pytest.approx(search.curve[-1], rel=1e-9)
        assert found <= 1.02 * pooled


def test_homogeneity_of_iris_is_pooled_k_means_own() -> None:
    rows, kinds = iris()
    sites = np.array_split(rows, 3)  # one kind of iris each
    search = run(sites, 3)
    found = distances(rows, search.centers[search.best]).argmin(axis=1)
    pooled = KMeans(3, n_init=RESTARTS, random_state=0).fit(rows)
    assert homogeneity_score(kinds, found) >= homogeneity_score(kinds, pooled.labels_) - 0.02
    assert homogeneity_score(kinds, found) > 0.72


def test_with_no_small_cells_rounds_are_lloyds_own() -> None:
    rows = iris()[0]
    first = rows[[0, 60, 120]]
    search = Search(first[None].copy(), rows, np.ones(len(rows)), 0)
    for _ in range(50):
        search.take({name: cells(rows[part], search.asked, 1) for name, part in halves()})
        if search.is_done:
            break
    known = KMeans(3, init=first, n_init=1, tol=0).fit(rows)
    np.testing.assert_allclose(search.centers[0], known.cluster_centers_, rtol=1e-12)
    assert search.curve[-1] == pytest.approx(known.inertia_, rel=1e-12)
    counts = np.sum(list(search.counts().values()), axis=0)
    assert counts.tolist() == np.bincount(known.labels_).tolist()


def halves() -> list[tuple[str, slice]]:
    return [("a", slice(0, 70)), ("b", slice(70, 150))]


def test_no_first_centre_is_a_row_and_each_group_has_enough_rows() -> None:
    rows = iris()[0]
    points, weights = summary(rows, 3, 5, np.random.default_rng(0))
    assert weights.min() >= 5
    assert weights.sum() == len(rows)
    assert 3 <= len(points) <= 24
    search_points = seeds(points, weights, 3, 4, np.random.default_rng(0))
    apart = distances(search_points.reshape(-1, 4), rows)
    assert apart.min() > 0
    many, few = summary(rows, 3, 40, np.random.default_rng(0))
    assert few.min() >= 40
    assert len(many) <= 3


def test_a_small_cell_gives_its_rows_to_the_next_centre() -> None:
    rows = np.array([[0.0]] * 6 + [[1.0]] * 2 + [[5.0]] * 6)
    centers = np.array([[[0.0], [1.2], [5.0]]])
    found = cells(rows, centers, 3)
    assert found.counts.tolist() == [[8, 0, 6]]
    assert found.sums.tolist() == [[[2], [0], [30]]]
    assert found.inertia[0] == pytest.approx(2 * 0.04)  # of the rows as they are
    assert (merged(distances(rows, centers[0]), np.zeros(14, np.intp), 100) == 0).all()


def test_an_empty_centre_is_put_where_it_lowers_the_inertia() -> None:
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(place, 0.1, size=(50, 2)) for place in (0, 5, 10)])
    points, weights = summary(rows, 3, 5, random)
    first = np.array([[[0.0, 0.0], [7.0, 7.0], [100.0, 100.0]]])
    search = Search(first, points, weights, 1e-9)
    for _ in range(30):
        search.take({"a": cells(rows, search.asked, 5)})
        if search.is_done:
            break
    best = KMeans(3, n_init=5, random_state=0).fit(rows).inertia_
    assert search.curve[-1] == pytest.approx(best, rel=1e-9)
    assert (np.diff(search.curve) <= 0).all()
    assert len(far_points(points, weights, first[0], 2)) == 2


def test_a_step_that_would_raise_the_inertia_is_not_taken() -> None:
    """The site's cells say less than it measures: their means lead away from its rows."""
    first = np.array([[[0.0], [10.0]]])
    search = Search(first.copy(), np.array([[0.0], [10.0]]), np.ones(2), 1e-9)
    search.take({"a": Cells(np.array([5.0]), np.array([[[30.0], [100.0]]]), np.array([[10, 10]]))})
    assert search.asked.tolist() == [[[3.0], [10.0]]]
    search.take({"a": Cells(np.array([6.0]), np.array([[[30.0], [100.0]]]), np.array([[10, 10]]))})
    assert search.is_done
    assert search.centers.tolist() == first.tolist()
    assert search.curve == [5.0, 5.0]


def test_a_reseeded_centre_that_would_raise_the_inertia_goes_back() -> None:
    first = np.array([[[0.0], [4.0]]])
    search = Search(first.copy(), np.array([[50.0]]), np.ones(1), 1e-9)
    some = Cells(np.array([9.0]), np.array([[[20.0], [0.0]]]), np.array([[10.0, 0.0]]))
    search.take({"a": some})
    assert search.asked.tolist() == [[[2.0], [50.0]]]
    search.take({"a": Cells(np.array([10.0]), some.sums, some.counts)})
    assert search.asked.tolist() == [[[2.0], [4.0]]]  # the mean is kept, the centre is back
    search.take({"a": Cells(np.array([8.0]), some.sums, some.counts)})
    assert search.curve == [9.0, 9.0, 8.0]


def test_a_site_that_misses_a_round_does_not_stop_the_search() -> None:
    rows = scaled_cancer()
    sites = np.array_split(np.random.default_rng(2).permutation(rows), 3)
    pooled = KMeans(4, n_init=RESTARTS, random_state=0).fit(rows).inertia_
    search = run(sites, 4, absent=[2, 4])
    assert inertia_of(rows, search.centers[search.best]) <= 1.02 * pooled


def test_too_few_groups_and_sums_that_do_not_fit_are_refused() -> None:
    rows = iris()[0][:20]
    points, weights = summary(rows, 8, 5, np.random.default_rng(0))
    with pytest.raises(ModelUndetermined, match="different groups of at least 5 rows, and 8"):
        seeds(points, weights, 8, 2, np.random.default_rng(0))
    wrong = {"inertia": np.ones(2), "sums": np.ones((2, 2, 9)), "counts": np.ones((2, 2))}
    with pytest.raises(UpdateRejected, match="site 'x': its 'sums' has shape"):
        Cells.of(wrong, (2, 2, 4), "x")
