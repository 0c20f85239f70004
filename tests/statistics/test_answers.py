"""What a site may not answer: each lie is refused with what is wrong about it, and no value."""

import json
from typing import Any

import pytest

from prefect_federated.errors import UpdateRejected
from prefect_federated.statistics.answers import answers_in
from prefect_federated.statistics.histograms import OUTER, nested_edges, shown_edges
from prefect_federated.statistics.question import FINE, KEY, Question

QUESTION = Question(
    dataset="heart", splits=["train"], features=["age", "sex"], bins=4, fine=2,
    ranges={"age": (0, 100)}, group_by="sex",
)  # fmt: skip
EDGES = [-OUTER, *nested_edges(shown_edges(0, 100, 4), 2)[::2].tolist(), OUTER]


def answer(**summary: Any) -> dict[str, Any]:
    whole = {"count": 90, "missing": 10, **summary}
    return {
        "splits": {
            "train": {"rows": 100, "columns": {"age": {"kind": "numeric", "summary": whole}}}
        }
    }


def read(content: Any, question: Question = QUESTION) -> None:
    answers_in({KEY: json.dumps(content).encode()}, question, "count")


def test_an_honest_answer_is_taken() -> None:
    counts = [0, 20, None, 30, 20, 0]
    content = answer(histogram={"edges": EDGES, "counts": counts})
    blob = json.dumps(content).encode()
    shown, fine = answers_in({KEY: blob, FINE: blob}, QUESTION, "count")
    assert shown == fine
    summary = shown.splits["train"].columns["age"].summary
    assert summary.histogram is not None
    assert summary.histogram.counts == counts


@pytest.mark.parametrize(
    ("summary", "what"),
    [
        ({"count": -3}, "its count is -3"),
        ({"std": -0.5}, "its std is -0.5"),
        ({"min": 8, "max": 3}, "its minimum is above its maximum"),
        ({"quantiles": [{"q": 0.5, "value": 3}]}, "which only the server computes"),
        ({"categories": {"a": -1}}, "a category has fewer than 0 rows"),
        ({"categories": {str(n): 1 for n in range(20_000)}}, "20,000 categories"),
        ({"histogram": {"edges": EDGES, "counts": [1, 2]}}, "7 edges and 2 counts"),
        ({"histogram": {"edges": EDGES[::-1], "counts": [1] * 6}}, "do not rise"),
        (
            {"histogram": {"edges": [-OUTER, 0, 41.5, 100, OUTER], "counts": [1] * 4}},
            "not those that were asked for",
        ),
        ({"histogram": {"edges": EDGES, "counts": [0, 1, 2, -4, 0, 0]}}, "a count below 0"),
        ({"mean": float("nan")}, "not in the schema"),
        ({"rows": 3}, "not in the schema"),
    ],
)
def test_numbers_that_cannot_be_are_refused(summary: dict[str, Any], what: str) -> None:
    with pytest.raises(UpdateRejected, match=what):
        read(answer(**summary))


def test_noise_may_bring_counts_below_zero() -> None:
    read(answer(count=-3, noise="Laplace, epsilon 1"))


def test_what_was_not_asked_for_is_refused() -> None:
    content = answer()
    column = content["splits"]["train"]["columns"]["age"]
    with pytest.raises(UpdateRejected, match="a split 'test' that was not asked for"):
        read({"splits": {"test": content["splits"]["train"]}})
    with pytest.raises(UpdateRejected, match="a column 'name' that was not asked for"):
        read({"splits": {"train": {"rows": 9, "columns": {"name": column}}}})
    groups = {str(n): {"rows": 9, "columns": {}} for n in range(60)}
    with pytest.raises(UpdateRejected, match="60 groups"):
        read({"splits": {"train": {"rows": 9, "columns": {}, "groups": groups}}})
    nested = {"a": {"rows": 9, "columns": {}, "groups": {"b": {"rows": 9, "columns": {}}}}}
    with pytest.raises(UpdateRejected, match="groups of groups"):
        read({"splits": {"train": {"rows": 9, "columns": {}, "groups": nested}}})


def test_co_moments_of_other_columns_or_another_shape_are_refused() -> None:
    def with_sums(columns: list[str], matrix: list[list[float]]) -> dict[str, Any]:
        content = answer()
        sums = {"columns": columns, "n": matrix, "mean": matrix, "m2": matrix, "m": matrix}
        content["splits"]["train"]["co_moments"] = sums
        return content

    read(with_sums(["age"], [[1]]))
    with pytest.raises(UpdateRejected, match="of other columns"):
        read(with_sums(["chol"], [[1]]))
    with pytest.raises(UpdateRejected, match="not 1 by 1"):
        read(with_sums(["age"], [[1, 2]]))
    with pytest.raises(UpdateRejected, match="fewer than 0 rows"):
        read(with_sums(["age"], [[-1]]))


def test_no_message_shows_a_value_that_a_site_has_sent_where_a_number_belongs() -> None:
    with pytest.raises(UpdateRejected) as raised:
        read(answer(count="Jane Doe"))
    assert "Jane" not in str(raised.value)
    assert "splits.train.columns.age.summary.count" in str(raised.value)
