"""Attacks by whoever sets a job's parameters and runs many jobs: each is tried, and gets nothing.

The attacker sees what `protect` lets out, knows all rules, and knows the table but for one person.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.statistics.histograms import OUTER
from prefect_federated.statistics.schema import FromSite, SplitFromSite, Summary, Withheld
from tests.statistics.asking import FIRST_NIGHT, SmallSite

SMALL = 5
MINIMUM = 20


def patients(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": random.normal(54, 9, rows).round(),
            "chol": random.normal(246, 50, rows).round(1),
            "sex": random.choice(["female", "male"], rows, p=[0.3, 0.7]),
        }
    )


def numbers_in(answer: FromSite | SplitFromSite | Summary) -> set[float]:
    """Returns each number that left, wherever it stands."""
    found: set[float] = set()

    def walk(part: object) -> None:
        if isinstance(part, dict):
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)
        elif isinstance(part, float | int):
            found.add(float(part))

    walk(answer.model_dump(exclude={"schema_version"}))
    return found


def is_empty(summary: Summary) -> bool:
    return summary == Summary(withheld=summary.withheld) and bool(summary.withheld)


def can_compute(equations: Iterable[Sequence[float]], wanted: Sequence[float]) -> bool:
    """Whether adding and subtracting the known sums of unknowns gives the wanted sum of them."""
    table, target = np.array(list(equations), float), np.array(wanted, float)
    if not len(table):
        return False
    solution = np.linalg.lstsq(table.T, target, rcond=None)[0]
    return bool(np.allclose(table.T @ solution, target, atol=1e-6))


# Tiny groups, and their complement


def test_a_split_of_too_few_rows_gives_nothing_and_says_why(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(11))
    split = site.split({"age": range(0, 101, 10)}, group_by="sex")
    assert split.rows is None
    assert not split.groups
    assert split.co_moments is None
    assert [str(line.reason) for line in split.withheld] == ["11 rows < minimum 20"]
    assert all(is_empty(column.summary) for column in split.columns.values())


@pytest.mark.parametrize("another", [{}, {"features": ["bmi"]}, {"group_by": "sex"}], ids=str)
def test_a_row_that_takes_a_released_split_below_the_minimum_is_not_told(
    tmp_path: Path, another: dict[str, object]
) -> None:
    frame = patients(20).assign(bmi=np.nan)
    edges = {"age": range(0, 101, 10)}
    site = SmallSite(tmp_path, frame)
    first = site.ask(edges, features=["age", "chol", "sex"])
    assert first.splits["train"].rows == 20
    for left in (19, 18, 17):
        site.night, site.frame = 20 - left, frame.iloc[:left]
        again = site.ask(**{"edges": edges, "features": ["age", "chol", "sex"], **another})  # type: ignore[arg-type]
        split = again.splits["train"]
        assert split.rows == 20
        assert again.released == FIRST_NIGHT
        assert not numbers_in(again) - numbers_in(first)
        told = again.model_dump_json()
        assert f"{left} rows" not in told
        assert "fewer than 20 values" not in told
        for name in {"age", "chol"} & split.columns.keys():
            assert split.columns[name] == first.splits["train"].columns[name]
        if "bmi" in split.columns:
            assert "was not asked then" in split.columns["bmi"].summary.withheld[0].reason


@pytest.mark.parametrize("sizes", [(11, 10, 9, 11), (10, 11, 10), (11, 0)])
def test_the_number_of_rows_of_a_small_split_is_told_once(
    tmp_path: Path, sizes: Sequence[int]
) -> None:
    frame = patients(11)
    site = SmallSite(tmp_path, frame)
    for night, rows in enumerate(sizes):
        site.night, site.frame = night, frame.iloc[:rows]
        for _ in range(2):  # the same question again
            reasons = [line.reason for line in site.split().withheld]
            first = f"{rows} rows < minimum 20"
            assert reasons == ([first] if night == 0 else ["fewer than 20 rows"])


def test_a_released_split_that_shrinks_by_many_rows_does_not_tell_how_many_are_left(
    tmp_path: Path,
) -> None:
    frame = patients(300)
    site = SmallSite(tmp_path, frame)
    site.ask()
    for night, rows in enumerate((11, 10), 1):
        site.night, site.frame = night, frame.iloc[:rows]
        split = site.split()
        assert split.rows is None
        assert [line.reason for line in split.withheld] == ["fewer than 20 rows"]


def test_an_empty_split_is_told_of_if_that_is_not_a_change_of_few_rows(tmp_path: Path) -> None:
    frame = patients(300)
    site = SmallSite(tmp_path, frame)
    site.ask()
    site.night, site.frame = 1, frame.iloc[:0]
    empty = "the table is empty: check the path, query or split"
    assert [line.reason for line in site.split().withheld] == [empty]
    site.night, site.frame = 2, frame.iloc[:1]
    assert [line.reason for line in site.split().withheld] == ["fewer than 20 rows"]


def test_a_small_split_that_grows_is_released(tmp_path: Path) -> None:
    frame = patients(25)
    site = SmallSite(tmp_path, frame.iloc[:19])
    assert site.split().rows is None
    site.night, site.frame = 1, frame
    assert site.split().rows == 25


@pytest.mark.parametrize("sizes", [(150, 100, 3), (200, 19), (90, 80, 70, 1), (60, 30, 2, 2)])
def test_a_tiny_group_is_not_the_total_minus_the_other_groups(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    frame = patients(sum(sizes))
    frame["ward"] = np.repeat([f"ward {place}" for place in range(len(sizes))], sizes)
    site = SmallSite(tmp_path, frame)
    split = site.split({"age": range(0, 101, 20)}, group_by="ward")
    whole, told = site.split(), split.groups
    assert whole.rows is not None
    left = whole.rows - sum(group.rows or 0 for group in told.values())
    hidden = [size for size in sizes if size >= 1][len(told) :]
    assert left >= MINIMUM
    assert len(hidden) >= 2
    for column in ("age", "chol"):
        groups = [group.columns[column].summary for group in told.values()]
        total = whole.columns[column].summary
        assert total.count is not None
        assert total.count - sum(group.count or 0 for group in groups) >= MINIMUM
    bins = [group.columns["age"].summary.histogram for group in told.values()]
    counts = split.columns["age"].summary.histogram
    assert counts is not None
    for place, count in enumerate(counts.counts):
        parts = [histogram.counts[place] for histogram in bins if histogram is not None]
        if count is not None and None not in parts and parts:
            assert not 0 < count - sum(part or 0 for part in parts) < SMALL


def test_names_of_tiny_groups_do_not_leave(tmp_path: Path) -> None:
    frame = patients(200)
    frame["surgeon"] = ["Dr. Ada"] * 100 + ["Dr. Bob"] * 98 + ["Dr. Unique"] * 2
    answer = SmallSite(tmp_path, frame).ask(group_by="surgeon")
    assert "Unique" not in answer.model_dump_json()


def test_grouping_by_a_column_of_single_persons_gives_nothing(tmp_path: Path) -> None:
    frame = patients(200)
    frame["patient"] = [f"P{place:04}" for place in range(200)]
    answer = SmallSite(tmp_path, frame).ask(group_by="patient")
    assert "P0" not in answer.model_dump_json()
    assert not answer.splits["train"].groups
    assert answer.splits["train"].columns["patient"].summary.categories is None


def test_a_value_that_is_missing_in_one_group_only_hides_that_group(tmp_path: Path) -> None:
    # All values of one column but ten are in ward a: ward b's ten would be total minus ward a.
    frame = patients(200)
    frame["ward"] = ["a"] * 100 + ["b"] * 100
    frame.loc[110:, "chol"] = np.nan
    split = SmallSite(tmp_path, frame).split(group_by="ward")
    assert all(is_empty(group.columns["chol"].summary) for group in split.groups.values())
    assert all(not is_empty(group.columns["age"].summary) for group in split.groups.values())


# Histograms


def test_a_column_that_is_withheld_in_a_group_says_why_there(tmp_path: Path) -> None:
    frame = patients().sort_values("sex", ignore_index=True)  # female first
    frame["age"] = np.arange(300.0) % 50
    frame["chol"] = frame["age"] * 4
    frame["bmi"] = frame["age"] / 2
    frame["pulse"] = frame["age"] + 40
    frame.loc[0, "chol"] = 9_000.0
    frame.loc[:1, "bmi"] = np.nan
    frame.loc[5 : (frame["sex"] == "female").sum() - 1, "pulse"] = np.nan
    groups = SmallSite(tmp_path, frame).split(group_by="sex").groups
    others = "with the totals, it would tell those of the other rows, which are withheld"
    for name, why in (
        ("chol", "a single row makes up more than 1/5 of its spread"),
        ("bmi", "fewer than 5 values are missing or infinite"),
        ("pulse", "fewer than 20 values"),
    ):
        for group, reason in (("female", why), ("male", others)):
            summary = groups[group].columns[name].summary
            assert summary == Summary(withheld=[Withheld(what="everything", reason=reason)])
    assert groups["female"].columns["age"].summary.mean is not None


def test_a_histogram_of_one_bin_around_a_person_gives_nothing(tmp_path: Path) -> None:
    frame = patients()
    frame.loc[0, "age"] = 97.0
    site = SmallSite(tmp_path, frame)
    histogram = site.column("age", [96.5, 97.5]).histogram
    assert histogram is None or 1.0 not in histogram.counts


@pytest.mark.parametrize("width", [100, 50, 10, 1, 0.1])
def test_bins_that_leave_one_person_outside_do_not_tell_that_person(
    tmp_path: Path, width: float
) -> None:
    frame = patients()
    frame.loc[0, "age"] = 97.0
    site = SmallSite(tmp_path, frame)
    summary = site.column("age", [0, 96.5])
    assert summary.histogram is None or 299.0 not in summary.histogram.counts
    summary = site.column("age", [*np.arange(0, 96.5, width), 96.5])
    histogram = summary.histogram
    if histogram is not None:
        known = [count for count in histogram.counts if count is not None]
        assert len(known) == len(histogram.counts) or 300 - sum(known) >= SMALL


def test_ranges_that_differ_a_little_between_jobs_do_not_narrow_to_a_person(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    ages = frame["age"].to_numpy()
    known: list[tuple[float, float]] = []
    asked = [[0, edge, 120] for edge in np.arange(20.5, 90, 1)]
    asked += [[edge, edge + 10] for edge in np.arange(20.5, 90, 3)]
    for edges in asked:
        histogram = site.column("age", edges).histogram
        if histogram is not None:
            bins = zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
            known += [(low, high) for low, high, count in bins if count is not None]
    assert len(known) > 10
    assert not told_small_intervals(ages, known)


def told_small_intervals(
    values: np.ndarray, known: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Returns intervals of few values whose count follows from those of known intervals."""
    points = sorted({-OUTER, OUTER, *(edge for cell in known for edge in cell)})
    atoms = list(itertools.pairwise(points))
    counts = [int(((values >= low) & (values < high)).sum()) for low, high in atoms]
    equations = [[low <= a and b <= high for a, b in atoms] for low, high in known]
    equations.append([True] * len(atoms))
    found = []
    for start in range(len(atoms)):
        for end in range(start + 1, len(atoms) + 1):
            if sum(counts[start:end]) >= SMALL:
                break
            wanted = [start <= place < end for place in range(len(atoms))]
            if sum(counts[start:end]) and can_compute(equations, wanted):
                found.append((points[start], points[end]))
    return found


@given(
    values=st.lists(st.integers(0, 12), min_size=20, max_size=90),
    asked=st.lists(
        st.lists(st.integers(0, 13), min_size=2, max_size=7, unique=True), min_size=1, max_size=5
    ),
)
@settings(max_examples=25, deadline=None)
def test_no_histograms_together_tell_a_small_interval(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], asked: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("site")
    policy = PrivacyPolicy(rows_per_bin=1, small_missing=0)
    site = SmallSite(folder, pd.DataFrame({"x": np.array(values, float)}), policy)
    known: list[tuple[float, float]] = []
    for edges in asked:
        cuts = [edge - 0.5 for edge in sorted(edges)]
        histogram = site.column("x", cuts).histogram
        for low, high, count in zip(
            histogram.edges if histogram else [],
            histogram.edges[1:] if histogram else [],
            histogram.counts if histogram else [],
            strict=False,
        ):
            if count is not None:
                assert not 0 < count < SMALL
                known.append((low, high))
    assert not known or not told_small_intervals(np.array(values, float), known)


def test_refinement_does_not_narrow_to_the_largest_value(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    ages = frame["age"].to_numpy()
    noised = site.column("age").max
    assert noised is not None
    assert noised > ages.max()
    low, high = 0.0, 200.0
    known: list[tuple[float, float]] = []
    for _ in range(40):
        middle = (low + high) / 2
        histogram = site.split({"age": [low, middle, high]}, kind="refine").columns["age"]
        counts = histogram.summary.histogram
        if counts is None:
            low = middle
            continue
        cells = zip(counts.edges, counts.edges[1:], counts.counts, strict=False)
        known += [(a, b) for a, b, count in cells if count is not None]
        upper = counts.counts[2]
        low, high = (middle, high) if upper is None or upper > 0 else (low, middle)
    assert not told_small_intervals(ages, known)
    # An empty bin is known by the maximum that has been released, and by nothing nearer.
    assert high >= noised


def looks_of(folder: Path, frame: pd.DataFrame, column: str, *asked: list[float]) -> list[object]:
    """Returns which bins a site tells that is asked for the first time, and which are empty."""
    site = SmallSite(folder, frame)
    histograms = [site.column(column, edges).histogram for edges in asked]
    return [
        histogram and [None if count is None else count > 0 for count in histogram.counts]
        for histogram in histograms
    ]


def test_edges_that_close_in_on_a_person_look_the_same_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "5e" * size)
    frame = patients()
    frame.loc[7, "chol"] = 603.0
    noised = SmallSite(tmp_path / "first", frame).column("chol").max
    assert noised is not None
    edges = [
        edge for edge in [*np.arange(427, 700, 7.0), 602.9, 603.0, 603.1, 603.5] if edge < noised
    ]
    assert max(edges) > 603.4
    for below in ([0.0], [0.0, 200.0, 250.0], [0.0, 420.0]):
        looks = [
            looks_of(tmp_path / f"{below}{edge}", frame, "chol", [*below, edge, 10_000.0])
            for edge in edges
        ]
        assert looks == [looks[0]] * len(looks)


def test_a_value_that_one_person_has_looks_like_one_that_nobody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last of the given bins has both edges: [.., 60] less [.., 60) is who is 60.
    monkeypatch.setattr("secrets.token_hex", lambda size: "5e" * size)
    frame = patients()
    frame.loc[frame["age"] == 60, "age"] = 61.0
    frame.loc[7, "age"] = 60.0
    looks = [
        looks_of(tmp_path / str(edge), frame, "age", [0.0, edge], [0.0, edge, 120.0])
        for edge in (60.0, 60.5)
    ]
    assert looks[0] == looks[1]


def test_a_site_gives_no_quantile_of_its_own_rows(tmp_path: Path) -> None:
    frame = patients(25)
    answer = SmallSite(tmp_path, frame).ask({"age": range(0, 101, 50)})
    assert not answer.splits["train"].columns["age"].summary.quantiles


# The same question again, after a row


def changed_by_one(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    corrected = frame.copy()
    corrected.loc[7, "chol"] = 999.0
    swapped = pd.concat([frame.iloc[1:], patients(1, seed=9)], ignore_index=True)
    return {
        "one row fewer": frame.iloc[1:],
        "one row more": pd.concat([frame, patients(1, seed=9)], ignore_index=True),
        "a corrected value": corrected,
        "one row for another": swapped,
        "19 rows more": pd.concat([frame, patients(19, seed=9)], ignore_index=True),
    }


@pytest.mark.parametrize("change", list(changed_by_one(patients())))
def test_the_same_question_after_a_small_change_gives_the_earlier_release(
    tmp_path: Path, change: str
) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    edges = {"age": range(0, 101, 10)}
    first = site.ask(edges, group_by="sex")
    site.night, site.frame = 1, changed_by_one(frame)[change]
    second = site.ask(edges, group_by="sex")
    unchanged = numbers_in(second) - numbers_in(first)
    assert not unchanged
    assert first.released is None
    assert second.released is not None
    assert second.released.day == 1
    assert any("2026-11-01 02:00 UTC" in line.reason for line in second.splits["train"].withheld)


@pytest.mark.parametrize("change", list(changed_by_one(patients())))
@pytest.mark.parametrize(
    "another",
    [
        {"edges": {"age": range(0, 121, 20)}},
        {"edges": {"age": range(0, 101, 10)}, "features": ["age"]},
        {"features": ["chol"]},
        {"group_by": "sex"},
        {"group_by": "sex", "features": ["chol"]},
        {"edges": {"age": [0, 40, 100]}, "kind": "count"},
    ],
    ids=str,
)
def test_another_question_after_a_small_change_tells_no_new_number(
    tmp_path: Path, change: str, another: dict[str, object]
) -> None:
    frame, policy = patients(), PrivacyPolicy(minmax_noise=0)
    site = SmallSite(tmp_path / "site", frame, policy)
    first = site.ask({"age": range(0, 101, 10)})
    site.night, site.frame = 1, changed_by_one(frame)[change]
    second = site.ask(**another)  # type: ignore[arg-type]
    # What the data of before would have given tells nothing of the change.
    before = SmallSite(tmp_path / "before", frame, policy).ask(**another)  # type: ignore[arg-type]
    assert not numbers_in(second) - numbers_in(first) - numbers_in(before)
    assert change == "a corrected value" or "20 rows have changed" in second.model_dump_json()


def test_enough_new_rows_make_new_numbers(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    site.ask()
    site.night, site.frame = 1, pd.concat([frame, patients(20, seed=9)], ignore_index=True)
    again = site.ask()
    assert again.released is None
    assert again.splits["train"].rows == 320
    assert again.splits["train"].columns["age"].summary.mean == site.frame["age"].mean()


def test_going_back_to_an_earlier_state_but_for_a_row_tells_nothing(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    first = site.ask()
    site.night, site.frame = 1, pd.concat([frame, patients(25, seed=9)], ignore_index=True)
    second = site.ask()
    site.night, site.frame = 2, frame.iloc[1:]
    third = site.ask()
    assert not numbers_in(third) - numbers_in(second)
    assert first.splits["train"].rows == 300
    assert third.splits["train"].rows == 325


def test_a_group_with_one_row_more_keeps_its_earlier_numbers(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    first = site.split(group_by="sex").groups
    more = patients(40, seed=9)
    more["sex"] = ["male"] * 39 + ["female"]
    site.night, site.frame = 1, pd.concat([frame, more], ignore_index=True)
    second = site.split(group_by="sex")
    assert second.rows == 340
    assert second.groups["female"] == first["female"]
    assert second.groups["male"] == first["male"]  # or the female row would be the difference


# Minima, maxima, sums


def test_minima_of_many_jobs_do_not_average_to_the_true_one(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    told = set()
    for features in (["age"], ["age", "chol"], ["age", "sex"], ["age", "chol", "sex"]):
        summary = site.split(features=features).columns["age"].summary
        told.add((summary.min, summary.max))
        for group in site.split(features=features, group_by="sex").groups.values():
            part = group.columns["age"].summary
            assert part.min is not None
            assert part.max is not None
            true = frame[frame["sex"] == "female"]["age"]
            assert part.min not in set(true)
    [(low, high)] = told
    assert low is not None
    assert high is not None
    width = frame["age"].max() - frame["age"].min()
    assert frame["age"].min() - 0.1 * width <= low < frame["age"].min()
    assert frame["age"].max() < high <= frame["age"].max() + 0.1 * width


def test_another_site_moves_the_same_value_elsewhere(tmp_path: Path) -> None:
    told = {SmallSite(tmp_path / str(place), patients()).column("age").min for place in range(5)}
    assert len(told) == 5


def test_one_value_among_equal_ones_is_not_told_by_sums(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [0.0] * 99 + [1234.5], "y": np.arange(100.0)})
    split = SmallSite(tmp_path, frame).split({"x": [0, 1000, 2000]})
    summary = split.columns["x"].summary
    assert summary.sum is None
    assert summary.mean is None
    assert summary.variance is None
    assert not {1234.5, 12.345, 1.0} & numbers_in(summary)
    assert split.co_moments is not None
    assert split.co_moments.m[0] == [None, None]


def test_a_column_of_one_value_is_told_since_it_is_nobodys_own(tmp_path: Path) -> None:
    frame = pd.DataFrame({"chol": [0.0] * 123})
    summary = SmallSite(tmp_path, frame).column("chol", [-0.5, 0.5])
    assert (summary.min, summary.max, summary.mean, summary.variance) == (0, 0, 0, 0)
    assert summary.histogram is not None
    assert 123.0 in summary.histogram.counts


def test_a_rare_mark_does_not_tell_its_bearers_values_by_correlation(tmp_path: Path) -> None:
    frame = patients().drop(columns="sex")
    frame["celebrity"] = np.arange(300) == 17
    frame["rare"] = (np.arange(300) < 12).astype(float)
    pairs = SmallSite(tmp_path, frame).split().co_moments
    assert pairs is not None
    for column in ("celebrity", "rare"):
        place = pairs.columns.index(column)
        assert all(row[place] is None for row in pairs.m)
        assert pairs.m[place] == [None] * 4
    assert pairs.m[0][1] is not None


def test_a_persons_value_is_not_the_sum_with_minus_the_sum_without(tmp_path: Path) -> None:
    # Where one chol is missing, products with chol are over all rows but that person's.
    frame = patients().drop(columns="sex")
    frame.loc[3, "chol"] = np.nan
    pairs = SmallSite(tmp_path, frame).split().co_moments
    assert pairs is not None
    assert pairs.mean[0][1] is None
    assert pairs.n[0][1] is None
    # So are two columns that are missing in nearly the same rows.
    frame["thal"] = np.where(np.arange(300) < 100, np.nan, frame["age"] * 2 + np.arange(300) % 7)
    frame["ca"] = np.where(np.arange(300) < 101, np.nan, frame["age"] * 3 + np.arange(300) % 5)
    pairs = SmallSite(tmp_path / "b", frame).split().co_moments
    assert pairs is not None
    told = [pairs.n[0][pairs.columns.index(name)] for name in ("thal", "ca")]
    assert None in told


# Missing values, categories


@pytest.mark.parametrize("missing", [1, 4])
def test_few_missing_values_are_told_by_no_number(tmp_path: Path, missing: int) -> None:
    frame = patients()
    frame.loc[: missing - 1, "age"] = np.nan
    split = SmallSite(tmp_path, frame).split({"age": range(0, 101, 10)})
    summary = split.columns["age"].summary
    there = 300.0 - missing
    assert not {float(missing), there} & numbers_in(summary)
    assert summary.mean is None
    assert summary.histogram is not None
    known = [count for count in summary.histogram.counts if count is not None]
    assert 300 - sum(known) >= SMALL
    assert split.co_moments is not None
    assert there not in numbers_in(FromSite(splits={"train": split}))


def test_few_infinite_values_are_told_by_no_number(tmp_path: Path) -> None:
    frame = patients()
    frame.loc[:1, "age"] = np.inf
    summary = SmallSite(tmp_path, frame).column("age", range(0, 101, 10))
    assert not {2.0, 298.0} & numbers_in(summary)


def test_free_text_is_not_named(tmp_path: Path) -> None:
    frame = patients(200)
    frame["note"] = [f"patient {place % 60} was seen" for place in range(200)]
    answer = SmallSite(tmp_path, frame).ask()
    assert "was seen" not in answer.model_dump_json()
    assert answer.splits["train"].columns["note"].summary.withheld


def test_a_rare_category_is_not_named_and_not_computed(tmp_path: Path) -> None:
    frame = patients(200)
    frame["diagnosis"] = ["flu"] * 120 + ["cold"] * 60 + ["angina"] * 18 + ["kuru"] * 2
    summary = SmallSite(tmp_path, frame).column("diagnosis")
    assert summary.categories == {"flu": 120, "cold": 60}
    assert summary.other_categories == 20
    assert "kuru" not in summary.model_dump_json()


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abc?"), st.sampled_from("uvwxyz")), min_size=60, max_size=160
    ),
    small=st.integers(2, 8),
)
@settings(max_examples=25, deadline=None)
def test_no_sums_of_groups_and_categories_tell_a_small_cell(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], small: int
) -> None:
    folder = tmp_path_factory.mktemp("site")
    frame = pd.DataFrame(rows, columns=["ward", "kind"])
    frame["ward"] = frame["ward"].where(frame["ward"] != "?")
    policy = PrivacyPolicy(small_cell=small, minimum_rows=10, small_missing=0, rows_per_category=1)
    split = SmallSite(folder, frame, policy).split(group_by="ward")
    cells = [(ward, kind) for ward in (*"abc", None) for kind in "uvwxyz"]
    counts = {
        (ward, kind): int(
            (
                (frame["ward"] == ward if ward else frame["ward"].isna()) & (frame["kind"] == kind)
            ).sum()
        )
        for ward, kind in cells
    }

    def of(ward: str | None = "all", kind: str = "all") -> list[float]:
        return [float(ward in (w, "all") and kind in (k, "all")) for w, k in cells]

    equations = [of()]
    told = {"all": split.columns["kind"].summary}
    for ward, group in split.groups.items():
        equations.append(of(ward))
        told[ward] = group.columns["kind"].summary
    wards = split.columns["ward"].summary.categories or {}
    equations += [of(ward) for ward in wards]
    equations += [of(None)] if split.columns["ward"].summary.missing is not None else []
    for place, summary in told.items():
        for kind, count in (summary.categories or {}).items():
            assert count is None or count == 0 or count >= small
            equations.append(of(place, kind))
    small_cells = [cell for cell in cells if 0 < counts[cell] < small]
    for cell in small_cells:
        # Where the wards' own counts are told, a cell without a ward may be a group of its own.
        assert not can_compute(equations, of(*cell)), cell


@given(
    rows=st.lists(st.tuples(st.sampled_from("aab?"), st.integers(0, 5)), min_size=60, max_size=200),
    asked=st.lists(
        st.lists(st.integers(0, 6), min_size=2, max_size=5, unique=True), min_size=1, max_size=3
    ),
)
@settings(max_examples=20, deadline=None)
def test_no_histograms_by_group_tell_a_small_interval_of_a_group(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], asked: list[list[int]]
) -> None:
    frame = pd.DataFrame(rows, columns=["ward", "x"]).astype({"x": float})
    frame["ward"] = frame["ward"].where(frame["ward"] != "?")
    policy = PrivacyPolicy(minimum_rows=10, rows_per_bin=1, small_missing=0)
    site = SmallSite(tmp_path_factory.mktemp("site"), frame, policy)
    cells = [(ward, value) for ward in ("a", "b", None) for value in range(6)]
    equations = []

    def of(ward: str | None, low: float, high: float) -> list[float]:
        return [float(ward in (w, "all") and low <= value < high) for w, value in cells]

    for cuts in asked:
        split = site.split({"x": [cut - 0.5 for cut in sorted(cuts)]}, group_by="ward")
        for ward, part in {"all": split, **split.groups}.items():
            summary = part.columns["x"].summary
            if summary.count is not None:
                equations.append(of(ward, -1, 7))
            if summary.histogram is not None:
                edges, counts = summary.histogram.edges, summary.histogram.counts
                for low, high, count in zip(edges, edges[1:], counts, strict=False):
                    assert count is None or count == 0 or count >= SMALL
                    if count is not None:
                        equations.append(of(ward, low, high))
    for group in ("a", "b", None):
        of_ward = frame[frame["ward"] == group if group else frame["ward"].isna()]["x"]
        for low, high in itertools.combinations(range(7), 2):
            count = ((of_ward >= low) & (of_ward < high)).sum()
            if 0 < count < SMALL:
                assert not can_compute(equations, of(group, low, high)), (group, low, high)


def test_forbidden_columns_are_not_there_whatever_is_asked(tmp_path: Path) -> None:
    policy = PrivacyPolicy(forbidden_columns=frozenset({"SEX", "chol"}))
    site = SmallSite(tmp_path, patients(), policy)
    assert "sex" not in site.ask().model_dump_json()
    assert "chol" not in site.ask().model_dump_json()  # nor in its products with age
    named = site.split(features=["age", "sex"])
    assert named.columns["sex"].summary.withheld[0].reason == "the site does not allow it"
    assert not site.split(features=["age"], group_by="sex").groups


# Noise


def noisy(**changes: object) -> PrivacyPolicy:
    noise = Noise.model_validate({"epsilon": 0.5, "budget_epsilon": 1.0, **changes})
    return PrivacyPolicy(noise=noise, bounds={"age": (0, 110), "chol": (0, 700)})


def test_the_same_data_give_the_same_noise_and_cost_nothing_again(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(5000), noisy())
    answers = [site.ask({"age": range(0, 111, 10)}) for _ in range(20)]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].splits["train"].columns["age"].summary.noise is not None


def test_noise_is_not_averaged_away_beyond_the_budget(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(5000), noisy())
    told = []
    for bins in range(2, 30):
        summary = site.column("age", np.linspace(0, 110, bins + 1).tolist())
        if summary.count is not None:
            told.append(summary.count)
    assert len(told) == 2
    assert summary.withheld[0].reason == "budget: 1 of 1 epsilon spent, this job asks for 0.5"


def test_exact_numbers_are_not_among_the_noised(tmp_path: Path) -> None:
    site = SmallSite(tmp_path, patients(5000), noisy())
    frame = site.frame
    answer = site.ask(group_by="sex")
    told = numbers_in(answer)
    for column in ("age", "chol"):
        exact = {frame[column].mean(), frame[column].sum(), frame[column].var()}
        assert not exact & told
        summary = answer.splits["train"].columns[column].summary
        assert (summary.min, summary.max) == site.policy.bounds[column]


def test_with_noise_no_line_tells_that_one_row_has_a_name_of_its_own(tmp_path: Path) -> None:
    without = pd.DataFrame({"ward": ["a"] * 4000 + ["b"] * 4000, "age": np.arange(8000.0) % 90})
    one_more = pd.DataFrame({"ward": ["rare"], "age": [50.0]})
    lines = []
    for name, frame in (("without", without), ("with", pd.concat([without, one_more]))):
        split = SmallSite(tmp_path / name, frame, noisy()).split(group_by="ward")
        assert set(split.groups) == {"a", "b"}
        column = split.columns["ward"].summary
        assert set(column.categories or {}) == {"a", "b"}
        lines.append((split.withheld, column.withheld))
    assert lines[0] == lines[1]
    of_split, of_column = lines[0]
    assert any("if there are any" in line.reason for line in of_split)
    assert any("if there are any" in line.reason for line in of_column)
