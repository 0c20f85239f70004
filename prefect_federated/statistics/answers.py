"""What sites answer, checked before anything is made of it: a site may be broken, or lie."""

import math
from collections.abc import Mapping
from itertools import pairwise

from pydantic import ValidationError

from prefect_federated.errors import UpdateRejected
from prefect_federated.statistics.groups import MOST_GROUPS
from prefect_federated.statistics.histograms import OUTER, nested_edges, shown_edges
from prefect_federated.statistics.question import FINE, KEY, Question
from prefect_federated.statistics.schema import (
    CoMoments,
    FromSite,
    Histogram,
    SplitFromSite,
    Summary,
)

_MOST_BYTES = 64 << 20
_MOST_COLUMNS = 5_000
_MOST_CATEGORIES = 10_000
_MOST_SPLITS = 100
_LONGEST_NAME = 500


def answers_in(
    blobs: Mapping[str, bytes], question: Question, kind: str
) -> tuple[FromSite, FromSite | None]:
    """Returns a site's answer, and its counts in parts of the bins if it has sent any.

    Args:
        blobs: Of its update.
        question: What it was asked.
        kind: The site task.

    Raises:
        UpdateRejected: it is no answer to this question; the message says in what.
    """
    if KEY not in blobs:
        raise UpdateRejected(f"the answer to {kind!r} has no {KEY!r}. {_VERSIONS}")
    shown = _answer_in(blobs[KEY], question, kind)
    return shown, _answer_in(blobs[FINE], question, kind) if FINE in blobs else None


_VERSIONS = "Server and site may have different versions of prefect-federated."


def _answer_in(content: bytes, question: Question, kind: str) -> FromSite:
    if len(content) > _MOST_BYTES:
        raise UpdateRejected(
            f"the answer to {kind!r} has {len(content):,} bytes; {_MOST_BYTES:,} are allowed. Ask "
            "for fewer features."
        )
    try:
        answer = FromSite.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])[:200]
        raise UpdateRejected(
            f"the answer to {kind!r} is not in the schema: {where or 'JSON'}: "
            f"{first['type']}. {_VERSIONS}"
        ) from None
    problem = _problem(answer, question)
    if problem is not None:
        raise UpdateRejected(f"the answer to {kind!r} cannot be: {problem}.")
    return answer


def _problem(answer: FromSite, question: Question) -> str | None:
    if len(answer.splits) > _MOST_SPLITS:
        return f"it has {len(answer.splits):,} splits"
    for name, split in answer.splits.items():
        if question.splits is not None and name not in question.splits:
            return f"it has a split {name[:_LONGEST_NAME]!r} that was not asked for"
        wanted = _wanted_edges(question, name)
        problem = _problem_of_split(split, question, wanted)
        for group in split.groups.values():
            if group.groups:
                return "it has groups of groups"
            problem = problem or _problem_of_split(group, question, wanted)
        if problem is not None:
            return f"split {name[:_LONGEST_NAME]!r}: {problem}"
        if len(split.groups) > (MOST_GROUPS if question.group_by else 0):
            return f"it has {len(split.groups):,} groups"
    return None


def _wanted_edges(question: Question, split: str) -> dict[str, set[float]]:
    wanted = {
        name: set(nested_edges(shown_edges(*ends, question.bins), question.fine).tolist())
        for name, ends in question.ranges.items()
    }
    for name, edges in question.edges.get(split, {}).items():
        wanted[name] = set(edges)
    return wanted


def _problem_of_split(
    split: SplitFromSite, question: Question, wanted: Mapping[str, set[float]]
) -> str | None:
    if split.rows is not None and split.rows < 0 and not _has_noise(split):
        return f"it has {split.rows:g} rows"
    if len(split.columns) > _MOST_COLUMNS:
        return f"it has {len(split.columns):,} columns"
    for name, column in split.columns.items():
        if not name or len(name) > _LONGEST_NAME:
            return f"a column's name has {len(name):,} characters"
        if question.features is not None and name not in question.features:
            return f"it has a column {name!r} that was not asked for"
        problem = _problem_of_summary(column.summary, wanted.get(name, set()))
        if problem is not None:
            return f"column {name!r}: {problem}"
    return None if split.co_moments is None else _problem_of_co_moments(split.co_moments, split)


def _has_noise(split: SplitFromSite) -> bool:
    return any(column.summary.noise for column in split.columns.values())


def _problem_of_summary(summary: Summary, wanted: set[float]) -> str | None:
    counts = {
        "count": summary.count, "missing": summary.missing, "infinite": summary.infinite,
        "variance": summary.variance, "std": summary.std,
    }  # fmt: skip
    for name, value in counts.items():
        if value is not None and value < 0 and summary.noise is None:
            return f"its {name} is {value:g}"
    if summary.min is not None and summary.max is not None and summary.min > summary.max:
        return "its minimum is above its maximum"
    if summary.quantiles:
        return "it has quantiles, which only the server computes"
    if len(summary.categories or {}) > _MOST_CATEGORIES:
        return f"it has {len(summary.categories or {}):,} categories"
    if summary.noise is None and any((n or 0) < 0 for n in (summary.categories or {}).values()):
        return "a category has fewer than 0 rows"
    return None if summary.histogram is None else _problem_of_histogram(summary, wanted)


def _problem_of_histogram(summary: Summary, wanted: set[float]) -> str | None:
    histogram = summary.histogram
    assert isinstance(histogram, Histogram)
    edges, counts = histogram.edges, histogram.counts
    if len(edges) != len(counts) + 1 or len(edges) < 3:
        return f"its histogram has {len(edges):,} edges and {len(counts):,} counts"
    if any(low >= high for low, high in pairwise(edges)):
        return "the edges of its histogram do not rise"
    if edges[0] != -OUTER or edges[-1] != OUTER or not wanted.issuperset(edges[1:-1]):
        return "the edges of its histogram are not those that were asked for"
    if summary.noise is None and any(count is not None and count < 0 for count in counts):
        return "its histogram has a count below 0"
    return None


def _problem_of_co_moments(sums: CoMoments, split: SplitFromSite) -> str | None:
    columns = len(sums.columns)
    if len(set(sums.columns)) != columns or not set(sums.columns) <= split.columns.keys():
        return "its co-moments are of other columns"
    for matrix in (sums.n, sums.mean, sums.m2, sums.m, sums.mean_rest):
        if matrix is not None and (
            len(matrix) != columns or any(len(row) != columns for row in matrix)
        ):
            return f"its co-moments are not {columns} by {columns}"
    if any(n is not None and (n < 0 or not math.isfinite(n)) for row in sums.n for n in row):
        return "its co-moments count fewer than 0 rows"
    return None
