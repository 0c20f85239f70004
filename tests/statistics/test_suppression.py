"""Cells and bins that are withheld, worked out by hand."""

from prefect_federated.statistics.intervals import Bins, Limits, releasable
from prefect_federated.statistics.suppression import withheld_cells, withheld_groups

OUTER = 1.7976931348623157e308


def test_one_small_cell_takes_the_next_smallest_with_it() -> None:
    assert withheld_cells({"a": [90], "b": [30], "c": [2]}, 5) == {"b", "c"}


def test_small_cells_that_are_enough_together_take_nothing_with_them() -> None:
    assert withheld_cells({"a": [90], "b": [30], "c": [2], "d": [4]}, 5) == {"c", "d"}
    assert withheld_cells({"a": [90], "b": [30], "c": [1], "d": [3]}, 5) == {"b", "c", "d"}


def test_no_cell_is_withheld_where_none_is_small() -> None:
    assert withheld_cells({"a": [90], "b": [5], "c": [0]}, 5) == set()
    assert withheld_cells({"a": [1], "b": [2]}, 1) == set()


def test_a_table_by_group_keeps_no_single_gap_in_a_row() -> None:
    # In the first group x would be all but y, and so, from x in all rows, x in the second group.
    cells = {"x": [50.0, 2.0], "y": [40.0, 40.0], "z": [70.0, 70.0]}
    assert withheld_cells(cells, 5, hidden=[0, 6]) == {"x", "y"}


def test_groups_are_withheld_until_they_are_enough_rows_together() -> None:
    assert withheld_groups({"a": 90, "b": 30, "c": 2}, 0, 20) == {"b", "c"}
    assert withheld_groups({"a": 90, "b": 30}, 3, 20) == {"b"}
    assert withheld_groups({"a": 90, "b": 30}, 25, 20) == set()


def test_a_last_bin_with_both_edges_does_not_tell_who_is_at_its_edge() -> None:
    # One value is 60: [0, 60] has 101, [0, 60) has 100.
    closed = Bins([-OUTER, 0, 60, OUTER], [[0, 101, 99]])
    half_open = Bins([-OUTER, 0, 60, 120, OUTER], [[0, 100, 100, 0]])
    limits = Limits(5, low=-10, high=130)
    known = [cell for cell in closed.cells() if cell[0][1] != cell[1][1]]
    assert not any(releasable(known, half_open, limits)[1:3])
    # Where nobody is 60, it looks the same.
    nobody = Bins([-OUTER, 0, 60, OUTER], [[0, 100, 100]])
    known = [cell for cell in nobody.cells() if cell[0][1] != cell[1][1]]
    assert not any(releasable(known, half_open, limits)[1:3])


def test_bins_within_bins_are_told_if_what_is_left_is_not_small() -> None:
    wide = Bins([-OUTER, 0, 100, 200, OUTER], [[0, 100, 100, 0]])
    limits = Limits(5, low=0, high=200)
    assert releasable([], wide, limits) == [True, True, True, True]
    known = wide.cells()
    fine = Bins([-OUTER, 0, 50, 100, 150, 200, OUTER], [[0, 50, 50, 97, 3, 0]])
    assert releasable(known, fine, limits) == [True, True, True, False, False, True]


def test_where_nothing_is_small_everything_is_told() -> None:
    bins = Bins([0, 1, 2, 3], [[1, 0, 2]])
    assert releasable([], bins, Limits(0)) == [True, True, True]
    assert releasable([], bins, Limits(1)) == [True, True, True]


def test_values_that_are_missing_hide_in_what_the_bins_leave_out() -> None:
    bins = Bins([0, 10, 20, 30], [[40, 50, 60]])
    told = releasable([], bins, Limits(5, beside=[2], smallest_beside=5))
    assert told == [False, True, True]
