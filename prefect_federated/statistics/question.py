"""What a statistics job asks of its sites, as it travels with a site task."""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated

from pydantic import Field, ValidationError

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import JsonValue
from prefect_federated.statistics.schema import Part

KEY = "statistics"
"""The question's name in a site task's config, and the answer's among the update's blobs."""

FINE = "fine"
"""The name of a second answer: counts in parts of the bins, where there are enough values."""

Range = Annotated[tuple[float, float], Field(description="Low and high.")]
MOST_EDGES = 20_000


class Question(Part):
    """One question to a site; which of its fields matter depends on the site task.

    `describe` asks for everything but histograms, and for those too where `ranges` names all
    columns that take one; `count` asks for histograms between `ranges`; `refine` between `edges`.
    """

    dataset: str
    splits: list[str] | None = Field(default=None, description="All if None.")
    features: list[str] | None = Field(default=None, description="All if None.")
    group_by: str | None = None
    correlation: bool = True
    bins: int = Field(default=20, ge=1, le=1000, description="That are shown.")
    fine: int = Field(default=1, ge=1, le=1000, description="Parts of a shown bin, for quantiles.")
    ranges: dict[str, Range] = Field(default={}, description="Column -> the histogram's range.")
    edges: dict[str, dict[str, Annotated[list[float], Field(max_length=MOST_EDGES)]]] = Field(
        default={}, description="Split -> column -> edges to count between, rising."
    )
    job: str = ""

    def config(self) -> dict[str, JsonValue]:
        """Returns the question as the config of a site task."""
        asked: JsonValue = json.loads(self.model_dump_json(exclude_defaults=True))
        return {KEY: asked}


def question_in(config: Mapping[str, JsonValue]) -> Question:
    """Returns the question that a site task's config holds.

    Raises:
        ConfigurationError: it holds none, or one that is wrong.
    """
    if KEY not in config:
        raise ConfigurationError(
            "this executor computes statistics; it is for the job 'statistics' and no other. Name "
            "an executor of your own as the job's executor."
        )
    try:
        question = Question.model_validate(config[KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigurationError(
            f"the statistics job asks what this site does not understand: {where}: {first['msg']}. "
            "Server and site may have different versions of prefect-federated."
        ) from None
    for low, high in question.ranges.values():
        if not low <= high:
            raise ConfigurationError(
                f"a range from {low:g} to {high:g}; write the lower one first."
            )
    for by_column in question.edges.values():
        for column, edges in by_column.items():
            if len(edges) < 2 or any(a >= b for a, b in pairwise(edges)):
                raise ConfigurationError(f"the edges for column {column!r} do not rise.")
    return question
