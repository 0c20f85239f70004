"""What a job asks of the sites' tables: which rows, which columns, and what the label is."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from prefect_federated.messages import JsonValue

Objective: TypeAlias = Literal["binary", "multiclass", "regression", "poisson", "ranking", "none"]
KEY = "tabular"
"""Where a question stands in a call's config."""


class TabularQuestion(BaseModel):
    """What a job asks of the sites' tables; travels in the config of its calls.

    Args:
        dataset: The dataset's name in the sites' datasets.yaml.
        train: The split to train on; the split "train", or the only one, if None.
        test: The split to measure on; if None, the split "test" where there is one, else
            `test_share` of the rows, which are not trained on.
        test_share: Share of the rows that is held out where there is no split to measure on.
        label: The column to predict; None where there is none.
        features: The columns to predict from; None for all others that may be used.
        key: The column by which rows of different sites are matched; None where they are not.
        objective: What the label is.
        group: The column that names each row's query, for ranking.
        seed: Of the choice of held-out rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    train: str | None = None
    test: str | None = None
    test_share: float = Field(default=0.2, ge=0, lt=1)
    label: str | None = None
    features: tuple[str, ...] | None = None
    key: str | None = None
    objective: Objective = "none"
    group: str | None = None
    seed: int = 0

    @property
    def has_classes(self) -> bool:
        """Whether the label is one of a few classes."""
        return self.objective in ("binary", "multiclass")


def question_in(config: Mapping[str, JsonValue]) -> TabularQuestion:
    """Returns the question in a call's config.

    Raises:
        KeyError: there is none.
    """
    return TabularQuestion.model_validate(config[KEY])
