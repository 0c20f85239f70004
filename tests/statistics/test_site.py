"""What sites compute and what is merged of it, from real files, against pandas on all rows."""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefect_federated.datasets import Table
from prefect_federated.errors import ConfigurationError, DatasetNotFound
from prefect_federated.executors import Site
from prefect_federated.statistics import site as executors
from prefect_federated.statistics.answers import answers_in
from prefect_federated.statistics.question import Question
from prefect_federated.statistics.schema import Statistics, Summary
from tests.statistics.surveyed import OPEN, QUANTILES, asked, survey, write_sites

EXACT = 1e-12  # relative
NUMBERS = ["age", "pressure", "far", "seen", "is_smoker"]


def rows(site: int, count: int) -> pd.DataFrame:
    generator = np.random.default_rng(site)
    age = generator.integers(20, 90, count).astype(float)
    frame = pd.DataFrame(
        {
            "age": age,
            "pressure": 80 + age / 2 + generator.normal(0, 9, count),
            "far": 1e9 + generator.normal(0, 1, count),
            "seen": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(generator.integers(0, 9**7, count), "s"),
            "is_smoker": generator.random(count) < 0.3,
            "ward": generator.choice(["north", "south", "east"], count, p=[0.5, 0.3, 0.2]),
        }
    )
    frame.loc[generator.random(count) < 0.2, "pressure"] = None
    return frame


def site_file(policy: str = OPEN) -> str:
    return (
        f"privacy: {policy}\ndatasets:\n  visits:\n    splits:\n      train: {{csv: train.csv}}\n"
        f"      test: {{csv: test.csv}}\n    privacy: {policy}\n"
    )


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("visits")
    folders = write_sites(folder, {name: site_file() for name in ("a", "b", "c")})
    for number, its in enumerate(folders.values()):
        for split, count in (("train", 700 + 300 * number), ("test", 200)):
            rows(number * 2 + (split == "test"), count).to_csv(its / f"{split}.csv", index=False)
    return folders


def pooled(sites: dict[str, Path], split: str) -> pd.DataFrame:
    frames = [pd.read_csv(its / f"{split}.csv", parse_dates=["seen"]) for its in sites.values()]
    frame = pd.concat(frames, ignore_index=True)
    since = frame["seen"] - pd.Timestamp("1970-01-01")
    return frame.assign(seen=since.dt.total_seconds(), is_smoker=frame["is_smoker"].astype(float))


@pytest.fixture(scope="module")
def result(sites: dict[str, Path]) -> Statistics:
    return survey(sites, Question(dataset="visits", fine=8, group_by="ward"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_moments_over_all_sites_equal_pandas_on_the_pooled_rows(
    sites: dict[str, Path], result: Statistics, split: str
) -> None:
    frame = pooled(sites, split)
    found = result.splits[split]
    assert found.rows == len(frame)
    for name in NUMBERS:
        column, summary = frame[name], found.features[name].overall
        assert summary.count == column.count()
        assert summary.missing == column.isna().sum()
        assert summary.mean == pytest.approx(column.mean(), rel=EXACT)
        assert summary.sum == pytest.approx(column.sum(), rel=EXACT)
        assert summary.variance == pytest.approx(column.var(), rel=EXACT)
        assert summary.std == pytest.approx(column.std(), rel=EXACT)
        assert (summary.min, summary.max) == (column.min(), column.max())


def test_categories_over_all_sites_equal_pandas(sites: dict[str, Path], result: Statistics) -> None:
    frame = pooled(sites, "train")
    assert result.splits["train"].features["ward"].overall.categories == {
        **frame["ward"].value_counts()
    }
    smokers = frame["is_smoker"].sum()
    assert result.splits["train"].features["is_smoker"].overall.categories == {
        "false": len(frame) - smokers,
        "true": smokers,
    }


def test_correlations_over_all_sites_equal_pandas(
    sites: dict[str, Path], result: Statistics
) -> None:
    found = result.splits["train"].correlation
    assert found is not None
    frame = pooled(sites, "train")[found.columns]
    expected = (frame - frame.mean().round()).corr()  # pandas loses digits around 1e9
    np.testing.assert_allclose(np.array(found.values, float), expected, rtol=0, atol=EXACT)


def test_histograms_equal_numpys_on_the_pooled_rows_when_the_range_is_given(
    sites: dict[str, Path],
) -> None:
    question = Question(
        dataset="visits", bins=13, fine=4,
        ranges={"age": (20, 89), "pressure": (95.5, 120), "far": (1e9 - 2, 1e9 + 2)},
    )  # fmt: skip
    found = survey(sites, question)
    frame = pooled(sites, "train")
    for name, ends in question.ranges.items():
        histogram = found.splits["train"].features[name].overall.histogram
        assert histogram is not None
        counts, edges = np.histogram(frame[name].dropna(), bins=13, range=ends)
        np.testing.assert_array_equal(histogram.edges, edges)
        np.testing.assert_array_equal(histogram.counts, counts)
    assert any("not in the histogram" in note and "'far'" in note for note in found.notes)


def test_the_pooled_quantile_lies_within_its_bound(
    sites: dict[str, Path], result: Statistics
) -> None:
    frame = pooled(sites, "train")
    for name in ("age", "pressure", "far", "seen"):
        column = frame[name].dropna()
        summary = result.splits["train"].features[name].overall
        assert [found.q for found in summary.quantiles] == list(QUANTILES)
        for found in summary.quantiles:
            assert found.lower is not None
            assert found.upper is not None
            assert found.lower <= column.quantile(found.q) <= found.upper
            inside = column.between(found.lower, found.upper).mean()
            assert found.upper - found.lower <= 0.0101 * column.std() or inside <= 0.0201


def test_groups_equal_pandas_groups(sites: dict[str, Path], result: Statistics) -> None:
    frame = pooled(sites, "train")
    groups = result.splits["train"].groups
    assert set(groups) == {"north", "south", "east"}
    for ward, rows in frame.groupby("ward"):
        group = groups[str(ward)]
        assert group.rows == len(rows)
        summary = group.features["pressure"].overall
        assert summary.mean == pytest.approx(rows["pressure"].mean(), rel=EXACT)
        assert summary.variance == pytest.approx(rows["pressure"].var(), rel=EXACT)
        assert summary.histogram is not None
        counts, _ = np.histogram(rows["pressure"].dropna(), summary.histogram.edges)
        np.testing.assert_array_equal(summary.histogram.counts, counts)
        assert "ward" not in group.features


def test_a_database_gives_the_same_numbers_as_its_rows_in_a_file(
    sites: dict[str, Path], result: Statistics, tmp_path: Path
) -> None:
    text = (
        f"privacy: {OPEN}\ndatasets:\n  visits:\n    splits:\n"
        "      train: {url: 'sqlite:///visits.db', query: SELECT * FROM train}\n"
        "      test: {url: 'sqlite:///visits.db', query: SELECT * FROM test}\n"
        f"    privacy: {OPEN}\n    kinds: {{is_smoker: boolean, seen: datetime}}\n"
    )
    folders = write_sites(tmp_path, dict.fromkeys(sites, text))
    for name, its in sites.items():
        with sqlite3.connect(folders[name] / "visits.db") as database:
            for split in ("train", "test"):
                frame = pd.read_csv(its / f"{split}.csv")
                frame.to_sql(split, database, index=False)
    question = Question(dataset="visits", fine=8)
    found, expected = survey(folders, question), result
    for split in ("train", "test"):
        for name in NUMBERS:
            one = found.splits[split].features[name].overall
            other = expected.splits[split].features[name].overall
            for number in ("count", "missing", "min", "max"):
                assert getattr(one, number) == getattr(other, number)
            assert one.mean == pytest.approx(other.mean, rel=EXACT)
            assert one.variance == pytest.approx(other.variance, rel=EXACT)
            assert one.histogram == other.histogram
        one_by_name = found.splits[split].features["ward"].overall.categories
        assert one_by_name == expected.splits[split].features["ward"].overall.categories
        correlations = found.splits[split].correlation
        theirs = expected.splits[split].correlation
        assert correlations is not None
        assert theirs is not None
        np.testing.assert_allclose(
            np.array(correlations.values, float), np.array(theirs.values, float), atol=EXACT
        )


def test_rows_are_read_no_more_often_than_needed(
    sites: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[list[str]] = []
    chunks = Table.chunks

    def counted(table: Table, columns: Sequence[str], rows: int = 1) -> Iterator[pd.DataFrame]:
        reads.append(list(columns))
        return chunks(table, columns, rows)

    monkeypatch.setattr(Table, "chunks", counted)
    one = {"a": sites["a"]}
    asks = Question(dataset="visits", splits=["train"], fine=8)
    survey(one, asks, quantiles=())
    assert len(reads) == 2  # all columns; then those that take a histogram
    assert reads[1] == ["age", "pressure", "far", "seen"]
    reads.clear()
    given = {"age": (20, 90), "pressure": (60, 160), "far": (1e9 - 5, 1e9 + 5), "seen": (0, 2e9)}
    described = Question.model_validate({**asks.model_dump(), "ranges": given})
    found = answers_in(asked(sites["a"], "describe", described).blobs, described, "describe")[0]
    assert len(reads) == 1
    assert found.splits["train"].columns["age"].summary.histogram is not None

    text = (
        f"privacy: {OPEN}\ndatasets:\n  visits:\n    splits:\n"
        "      train: {url: 'sqlite:///visits.db', query: 'SELECT age, ward FROM train'}\n"
    )
    folders = write_sites(tmp_path, {"a": text})
    with sqlite3.connect(folders["a"] / "visits.db") as database:
        pd.read_csv(sites["a"] / "train.csv").to_sql("train", database, index=False)
    reads.clear()
    survey(folders, asks, quantiles=())
    assert reads == [["age"]]  # the database has summed up the rest


def test_a_database_of_truth_values_alone_is_summed_up_too(tmp_path: Path) -> None:
    text = (
        f"privacy: {OPEN}\ndatasets:\n  visits:\n    url: sqlite:///visits.db\n"
        "    query: SELECT * FROM visits\n    kinds: {is_smoker: boolean}\n"
    )
    folders = write_sites(tmp_path, {"a": text})
    frame = rows(3, 200)[["is_smoker", "ward"]]
    with sqlite3.connect(folders["a"] / "visits.db") as database:
        frame.to_sql("visits", database, index=False)
    summary = survey(folders, Question(dataset="visits")).splits["all"].features["is_smoker"]
    assert summary.overall.mean == pytest.approx(frame["is_smoker"].mean(), rel=EXACT)
    assert summary.overall.categories is not None
    assert summary.overall.categories["true"] == frame["is_smoker"].sum()


def test_an_unknown_dataset_and_column_are_named_with_near_ones(sites: dict[str, Path]) -> None:
    with pytest.raises(DatasetNotFound, match=r"'visit'.*Did you mean 'visits'"):
        asked(sites["a"], "describe", Question(dataset="visit"))
    found = survey(sites, Question(dataset="visits", features=["age", "presure"]))
    assert list(found.splits["train"].features) == ["age"]
    assert any(
        "a: column 'presure' withheld" in line and "Did you mean 'pressure'" in line
        for line in found.withheld
    )


def test_an_unknown_split_and_a_grouping_by_numbers_are_visible(sites: dict[str, Path]) -> None:
    question = Question(dataset="visits", splits=["train", "tset"], group_by="age")
    found = survey(sites, question)
    assert list(found.splits) == ["train"]
    assert any("b: split 'tset' withheld" in line and "'test'" in line for line in found.withheld)
    assert any("b: groups withheld" in line and "'age'" in line for line in found.withheld)


def test_what_a_small_site_withholds_is_one_line_and_the_rest_stands(tmp_path: Path) -> None:
    text = "datasets:\n  visits: {csv: visits.csv}\n"
    folders = write_sites(tmp_path, dict.fromkeys(["site-1", "site-4"], text))
    rows(1, 400).to_csv(folders["site-1"] / "visits.csv", index=False)
    rows(2, 11).to_csv(folders["site-4"] / "visits.csv", index=False)
    found = survey(folders, Question(dataset="visits"))
    assert found.withheld[-1] == "site-4: withheld, 11 rows < minimum 20"
    assert found.splits["all"].sites["site-4"].rows is None
    own = found.splits["all"].features["age"].by_site["site-1"]
    assert found.splits["all"].features["age"].overall.mean == own.mean


def test_a_site_without_the_only_column_that_is_asked_for_is_shown_without_it(
    tmp_path: Path,
) -> None:
    text = "datasets:\n  visits: {csv: visits.csv}\n"
    folders = write_sites(tmp_path, dict.fromkeys(["a", "b"], text))
    rows(1, 400).to_csv(folders["a"] / "visits.csv", index=False)
    rows(2, 400).drop(columns="pressure").to_csv(folders["b"] / "visits.csv", index=False)
    found = survey(folders, Question(dataset="visits", features=["pressure"]))
    feature = found.splits["all"].features["pressure"]
    assert feature.without == ["b"]
    assert list(feature.by_site) == ["a"]
    assert found.splits["all"].sites["b"].rows is None
    of_b = [line for line in found.withheld if line.startswith("b:")]
    assert len(of_b) == 1
    assert "column 'pressure' withheld, there is no such column" in of_b[0]
    assert not any("minimum" in line for line in found.withheld)


@pytest.mark.parametrize("features", [None, ["age", "pressure"], ["pressure"]])
@pytest.mark.parametrize("policy", ["{}", OPEN])
def test_a_column_that_a_site_cannot_use_is_shown_as_withheld_there(
    tmp_path: Path, features: list[str] | None, policy: str
) -> None:
    text = f"privacy: {policy}\ndatasets:\n  visits: {{csv: visits.csv, privacy: {policy}}}\n"
    folders = write_sites(tmp_path, dict.fromkeys(["a", "b"], text))
    for number, its in enumerate(folders.values()):
        frame = rows(number, 400).fillna({"pressure": 120.0})
        if its.name == "b":
            frame["pressure"] = frame["pressure"].astype(object)
            frame.loc[50, "pressure"] = "high"
        frame.to_csv(its / "visits.csv", index=False)
    group_by = "ward" if features is None else None
    question = Question(dataset="visits", features=features, group_by=group_by)
    found = survey(folders, question)
    whole = found.splits["all"]
    for part in (whole, *whole.groups.values()):
        feature = part.features["pressure"]
        assert feature.kind == "numeric"
        assert feature.without == []
        assert feature.overall.mean == feature.by_site["a"].mean is not None
        of_b = feature.by_site["b"]
        assert of_b == Summary(withheld=of_b.withheld)
        (line,) = of_b.withheld
        assert line.what == "everything"
        assert "row 51" in line.reason
        assert "high" not in line.reason
    (told,) = [line for line in found.withheld if "row 51" in line]
    assert told.startswith("b, pressure: withheld, ")
    assert not any("minimum" in line for line in found.withheld)


def test_an_empty_table_and_one_without_usable_columns_are_told_of(tmp_path: Path) -> None:
    text = "datasets:\n  visits: {csv: visits.csv%s}\n"
    folders = write_sites(
        tmp_path, {"a": text % "", "b": text % ", columns: [age], forbidden: [age]"}
    )
    rows(1, 400).iloc[:0].to_csv(folders["a"] / "visits.csv", index=False)
    rows(2, 400).to_csv(folders["b"] / "visits.csv", index=False)
    assert survey(folders, Question(dataset="visits")).withheld == [
        "a: withheld, the table is empty: check the path, query or split",
        "b: withheld, it has no column that may be used",
    ]


def test_a_column_of_different_kinds_is_said_with_who_has_what(tmp_path: Path) -> None:
    text = f"privacy: {OPEN}\ndatasets:\n  visits: {{csv: visits.csv, privacy: {OPEN}}}\n"
    folders = write_sites(tmp_path, dict.fromkeys(["a", "b", "c"], text))
    for name, its in folders.items():
        frame = rows(1, 60)[["age", "pressure"]]
        if name == "c":
            frame = pd.DataFrame({"age": ["old", "young", "old"] * 20})
        frame.to_csv(its / "visits.csv", index=False)
    found = survey(folders, Question(dataset="visits"))
    feature = found.splits["all"].features["age"]
    assert feature.kind == "numeric"
    assert feature.overall.count == 120
    assert feature.by_site["c"].categories == {"old": 40, "young": 20}
    assert found.splits["all"].features["pressure"].without == ["c"]
    (note,) = found.notes
    assert "'age' holds numbers at a, b; text at c" in note
    assert "leaves out c" in note


def test_all_missing_infinite_and_constant_columns_are_told_as_they_are(tmp_path: Path) -> None:
    text = f"privacy: {OPEN}\ndatasets:\n  visits: {{csv: visits.csv, privacy: {OPEN}}}\n"
    folders = write_sites(tmp_path, {"a": text})
    frame = rows(1, 50).assign(none=np.nan, same=3.5)[["none", "same", "age"]]
    frame.loc[:3, "age"] = np.inf
    frame.to_csv(folders["a"] / "visits.csv", index=False)
    features = survey(folders, Question(dataset="visits")).splits["all"].features
    assert features["none"].kind == "empty"
    assert (features["none"].overall.count, features["none"].overall.missing) == (0, 50)
    assert features["same"].overall.variance == 0
    assert features["same"].overall.histogram is not None
    assert sum(n or 0 for n in features["same"].overall.histogram.counts) == 50
    assert (features["age"].overall.infinite, features["age"].overall.count) == (4, 46)


def test_a_site_outside_of_a_statistics_job_says_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="for the job 'statistics'"):
        executors.describe({}, Site("a", tmp_path, tmp_path))
