"""What protect lets through, what it withholds, and what a person reads of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_federated.datasets.policy import Noise, PrivacyPolicy
from prefect_federated.statistics.ledger import FOLDER, Ledger
from prefect_federated.statistics.protection import protect
from prefect_federated.statistics.request import Request
from prefect_federated.statistics.schema import (
    ColumnAtSite,
    FromSite,
    Quantile,
    SplitFromSite,
    Summary,
    Withheld,
)
from tests.statistics.asking import SmallSite, split_of
from tests.statistics.test_attacks import patients

OPEN = PrivacyPolicy(
    minimum_rows=1,
    small_cell=0,
    small_missing=0,
    rows_per_bin=1,
    rows_per_category=1,
    minmax_noise=0,
    changed_rows=0,
)
EDGES = {"age": range(0, 101, 10), "chol": range(0, 601, 50)}


def odd_patients() -> pd.DataFrame:
    frame = patients(200)
    frame.loc[0, "age"], frame.loc[1, "age"], frame.loc[2, "sex"] = np.nan, np.inf, None
    frame["smokes"] = np.arange(200) < 1
    return frame


@pytest.mark.parametrize("group_by", [None, "sex"])
def test_a_site_that_withholds_nothing_lets_every_number_through(
    tmp_path: Path, group_by: str | None
) -> None:
    frame = odd_patients()
    exact = split_of(frame, EDGES, group_by)
    told = SmallSite(tmp_path, frame, OPEN).split(EDGES, group_by)
    without_truths = {"columns": {"smokes": {"summary": {"min", "max"}}}}
    groups = {name: without_truths for name in exact.groups}
    for split in (exact, told):
        assert split.withheld == []
    assert told.model_dump(exclude={**without_truths, "groups": groups}) == exact.model_dump(
        exclude={**without_truths, "groups": groups}
    )


def test_the_default_lets_ordinary_columns_through(tmp_path: Path) -> None:
    split = SmallSite(tmp_path, patients()).split(EDGES, "sex")
    for part in (split, *split.groups.values()):
        for name in ("age", "chol"):
            summary = part.columns[name].summary
            assert None not in (summary.count, summary.sum, summary.mean, summary.variance)
            assert summary.histogram is not None
    assert set(split.groups) == {"female", "male"}
    assert split.columns["sex"].summary.categories is not None


def test_what_is_released_is_exact_where_there_is_no_noise(tmp_path: Path) -> None:
    frame = patients()
    summary = SmallSite(tmp_path, frame).column("chol", EDGES["chol"])
    chol = frame["chol"]
    assert (summary.mean, summary.variance) == (chol.mean(), chol.var())
    assert summary.histogram is not None
    whole = split_of(frame, EDGES).columns["chol"].summary.histogram
    assert whole is not None
    for told, exact in zip(summary.histogram.counts, whole.counts, strict=True):
        assert told is None or told == exact


def test_every_number_that_is_not_told_has_a_reason(tmp_path: Path) -> None:
    frame = odd_patients()
    frame["mostly missing"] = np.where(np.arange(200) < 195, np.nan, 1.0)
    frame["nothing"] = np.full(200, np.nan)
    site = SmallSite(tmp_path, frame)
    exact, told = split_of(frame, EDGES), site.split(EDGES)
    for name, column in exact.columns.items():
        summary = told.columns[name].summary
        lost = [
            field
            for field, value in column.summary
            if value not in (None, []) and getattr(summary, field) is None
        ]
        assert not lost or summary.withheld, (name, lost)


def test_an_empty_column_and_an_empty_split_are_told_of(tmp_path: Path) -> None:
    frame = patients()
    frame["nothing"] = np.full(300, np.nan)
    summary = SmallSite(tmp_path, frame).column("nothing")
    assert (summary.count, summary.missing) == (0, 300)
    empty = SmallSite(tmp_path / "b", frame.iloc[:0]).split()
    assert [line.reason for line in empty.withheld] == [
        "the table is empty: check the path, query or split"
    ]


def test_a_boolean_says_nothing_of_its_range(tmp_path: Path) -> None:
    frame = pd.DataFrame({"smokes": np.arange(100) % 3 == 0, "all": np.full(100, True)})
    split = SmallSite(tmp_path, frame).split()
    assert split.columns["smokes"].summary.mean == 0.34
    assert {(c.summary.min, c.summary.max) for c in split.columns.values()} == {(0.0, 1.0)}


def test_groups_with_coarser_bins_make_all_groups_coarser(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.uniform(0, 80, 500), "ward": ["a"] * 300 + ["b"] * 200})
    exact = split_of(frame, {"x": range(0, 81, 10)}, "ward")
    coarse = split_of(frame[frame["ward"] == "b"].drop(columns="ward"), {"x": range(0, 81, 20)})
    exact = exact.model_copy(update={"groups": {**exact.groups, "b": coarse}})
    told = protect(
        FromSite(splits={"train": exact}),
        PrivacyPolicy(),
        Request("d", group_by="ward"),
        Ledger(tmp_path / FOLDER),
    ).splits["train"]
    edges = [group.columns["x"].summary.histogram for group in told.groups.values()]
    assert [len(histogram.edges) if histogram else 0 for histogram in edges] == [7, 7]


def test_more_bins_than_rows_allow_are_withheld(tmp_path: Path) -> None:
    summary = SmallSite(tmp_path, patients(100)).column("age", range(0, 101, 5))
    assert summary.histogram is None
    [line] = summary.withheld
    assert (line.what, line.reason) == ("histogram", "20 bins are more than 10 for so few values")


def test_other_bins_of_the_same_values_are_told_where_nothing_small_is_between(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    site = SmallSite(tmp_path, pd.DataFrame({"x": random.uniform(0, 80, 5000)}))
    for edges in (range(0, 81, 10), range(0, 81, 20), range(-5, 85, 10), np.arange(0, 81, 2.5)):
        histogram = site.column("x", [float(edge) for edge in edges]).histogram
        assert histogram is not None
        told = sum(count is not None for count in histogram.counts)
        assert told >= len(histogram.counts) / 2


def test_a_histogram_that_leaves_values_out_is_withheld(tmp_path: Path) -> None:
    split = split_of(patients(), {"age": range(0, 101, 10)})
    summary = split.columns["age"].summary
    assert summary.histogram is not None
    cut = summary.histogram.model_copy(
        update={"edges": summary.histogram.edges[5:], "counts": summary.histogram.counts[5:]}
    )
    columns = {
        "age": ColumnAtSite(kind="numeric", summary=summary.model_copy(update={"histogram": cut}))
    }
    answer = FromSite(splits={"train": split.model_copy(update={"columns": columns})})
    told = protect(answer, PrivacyPolicy(), Request("d"), Ledger(tmp_path / FOLDER))
    lines = told.splits["train"].columns["age"].summary.withheld
    assert "its bins do not hold all values" in [line.reason for line in lines]


def test_quantiles_that_a_site_has_computed_do_not_leave(tmp_path: Path) -> None:
    summary = Summary(count=100, missing=0, quantiles=[Quantile(q=0.5, value=61.7)])
    split = SplitFromSite(rows=100, columns={"age": ColumnAtSite(kind="numeric", summary=summary)})
    answer = FromSite(splits={"train": split})
    told = protect(answer, PrivacyPolicy(), Request("d"), Ledger(tmp_path / FOLDER))
    assert "61.7" not in told.model_dump_json()
    assert told.splits["train"].columns["age"].summary.withheld[0].what == "quantiles"


def test_an_answer_without_counts_is_withheld(tmp_path: Path) -> None:
    split = SplitFromSite(
        rows=100, columns={"age": ColumnAtSite(kind="numeric", summary=Summary(mean=61.7))}
    )
    answer = FromSite(splits={"train": split})
    told = protect(answer, PrivacyPolicy(), Request("d"), Ledger(tmp_path / FOLDER))
    assert "61.7" not in told.model_dump_json()
    assert told.splits["train"].columns["age"].summary.withheld


@pytest.mark.parametrize("noise", [None, Noise(epsilon=1)])
def test_a_split_of_which_nothing_was_read_costs_nothing_and_is_not_in_the_ledger(
    tmp_path: Path, noise: Noise | None
) -> None:
    line = Withheld(what="column 'age'", reason="there is no such column that may be used.")
    unread = SplitFromSite(rows=None, columns={}, withheld=[line])
    policy, ledger = PrivacyPolicy(noise=noise), Ledger(tmp_path / FOLDER)
    answer = FromSite(splits={"train": unread})
    assert protect(answer, policy, Request("d"), ledger) == answer
    assert not (tmp_path / FOLDER).exists()
    both = FromSite(splits={"train": unread, "test": split_of(patients(3000), EDGES)})
    told = protect(both, policy, Request("d"), ledger)
    assert told.splits["train"] == unread
    assert told.splits["test"].rows is not None
    with ledger.account("d") as account:
        assert account.subjects
        assert not any("train" in subject for subject in account.subjects)


def test_one_split_of_too_few_rows_leaves_the_other_as_it_is(tmp_path: Path) -> None:
    answer = FromSite(
        splits={"train": split_of(patients(300), EDGES), "test": split_of(patients(11), EDGES)}
    )
    told = protect(answer, PrivacyPolicy(), Request("d"), Ledger(tmp_path / FOLDER))
    assert told.splits["train"].columns["age"].summary.mean is not None
    assert [line.reason for line in told.splits["test"].withheld] == ["11 rows < minimum 20"]


def test_a_constant_number_of_rows_makes_new_numbers_when_bins_tell_enough_changes(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    stays = random.normal(40, 8, 2000) + np.linspace(0, 20, 2000)
    site = SmallSite(tmp_path, pd.DataFrame({"x": stays[:1000]}))
    told = []
    for night in range(4):  # the last 1,000 stays; each night 250 are new
        site.night, site.frame = night, pd.DataFrame({"x": stays[night * 250 :][:1000]})
        answer = site.ask({"x": range(0, 101, 10)})
        told.append(answer.splits["train"].columns["x"].summary.mean)
        assert answer.released is None
    assert told == [stays[night * 250 :][:1000].mean() for night in range(4)]


def test_a_stricter_policy_does_not_get_the_release_of_a_looser_one(tmp_path: Path) -> None:
    frame = patients()
    site = SmallSite(tmp_path, frame)
    loose = site.column("sex")
    site.policy = PrivacyPolicy(small_cell=100, minmax_noise=0.3)
    strict = site.column("sex")
    assert loose.categories
    assert not strict.categories
    site.night, site.frame = 1, frame.iloc[1:]
    assert not site.column("sex").categories


def told_names(part: object, at: str = "") -> set[str]:
    """Returns where in a dump there is a number."""
    if isinstance(part, dict):
        return {name for key, value in part.items() for name in told_names(value, f"{at}/{key}")}
    if isinstance(part, list):
        return {name for key, value in enumerate(part) for name in told_names(value, f"{at}/{key}")}
    return {at} if isinstance(part, float) else set()


@given(
    values=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("aaabbc")), min_size=30, max_size=90
    ),
    cells=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    least=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    missing=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
@settings(max_examples=30, deadline=None)
def test_a_stricter_policy_releases_nothing_that_a_looser_one_does_not(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[tuple[int, str]],
    cells: tuple[int, int],
    least: tuple[int, int],
    missing: tuple[int, int],
) -> None:
    frame = pd.DataFrame(values, columns=["x", "kind"])
    frame["x"] = frame["x"].where(frame["x"] > 0).astype(float)
    told = []
    for place in (min, max):
        policy = PrivacyPolicy(
            small_cell=place(cells),
            minimum_rows=place(least),
            small_missing=place(missing),
            rows_per_bin=3,
            minmax_noise=0,  # how far it moves is each site's own secret
        )
        site = SmallSite(tmp_path_factory.mktemp("site"), frame, policy)
        dump = site.split({"x": [0.5, 3.5, 6.5, 9.5]}).model_dump(
            exclude={"withheld": True, "columns": {"kind": {"summary": {"other_categories"}}}}
        )
        told.append(told_names(dump))
    loose, strict = told
    assert strict <= loose


def test_numbers_that_a_site_withholds_itself_keep_their_reason(tmp_path: Path) -> None:
    line = Withheld(what="categories", reason="more than 1,000 different values")
    split = SplitFromSite(
        rows=100,
        columns={
            "note": ColumnAtSite(
                kind="categorical", summary=Summary(count=100, missing=0, withheld=[line])
            )
        },
        withheld=[Withheld(what="groups", reason="more than 50 different values")],
    )
    answer = FromSite(splits={"train": split}, withheld=[Withheld(what="x", reason="y")])
    told = protect(answer, PrivacyPolicy(), Request("d"), Ledger(tmp_path / FOLDER))
    assert told.withheld == answer.withheld
    assert told.splits["train"].withheld == split.withheld
    assert told.splits["train"].columns["note"].summary.withheld == [line]


def test_noise_by_group_costs_no_more_than_the_task(tmp_path: Path) -> None:
    policy = PrivacyPolicy(noise=Noise(epsilon=2, budget_epsilon=2), bounds={"age": (0, 110)})
    split = SmallSite(tmp_path, patients(9000), policy).split(group_by="sex", features=["age"])
    assert set(split.groups) == {"female", "male"}
    assert all(group.columns["age"].summary.mean for group in split.groups.values())
    assert [round(group.rows or 0) == group.rows for group in split.groups.values()] == [True, True]
