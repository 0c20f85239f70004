"""The parameters of jobs that grow trees in rounds."""

from typing import ClassVar

from pydantic import Field, JsonValue, model_validator

from prefect_federated.adapters.xgboost.parameters import Mode, Objective, resolve
from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.tabular import TabularJob


class TreeJob(TabularJob):
    """The parameters of a job that grows trees in rounds."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "xgboost",
        "prefect_federated.adapters.xgboost.pictures",
    )

    mode: ClassVar[Mode]

    label: str = Field(description="Column to predict.")
    objective: Objective = Field(
        default="binary",
        description="What the label is: one of two classes, or of several; a number; a count; or "
        "how well a row answers its query.",
    )
    group: str | None = Field(
        default=None, description="Column with each row's query, for objective 'ranking'."
    )
    rounds: int = Field(default=20, ge=1, le=100_000, description="Rounds to train.")
    trees_per_round: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Trees that a site grows one upon the other in a round (of each class).",
    )
    max_depth: int = Field(
        default=6, ge=0, le=30, description="Levels of a tree; 0 for no limit, with max_leaves."
    )
    eta: float = Field(default=0.3, gt=0, le=1, description="Learning rate.")
    xgboost: dict[str, JsonValue] = Field(
        default={},
        description='Further parameters of XGBoost\'s, such as {"subsample": 0.8, "lambda": 2}.',
    )
    early_stopping_rounds: int | None = Field(
        default=None,
        ge=1,
        description="End the job after so many rounds in which the federation's model has not "
        "become better, and keep the best one; if empty, all rounds are done.",
    )
    validation_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of each site's training rows that early stopping looks at; without it, "
        "all are trained on.",
    )
    explain: bool = Field(
        default=True,
        description="At the end, have the sites say what each column adds to predictions (means "
        "of SHAP values; no row leaves), for a picture.",
    )

    @model_validator(mode="after")
    def _parameters_are_known(self) -> "TreeJob":
        resolve(
            self.mode, self.objective, self.xgboost, classes=3, eta=self.eta,
            max_depth=self.max_depth,
        )  # fmt: skip
        if self.objective == "ranking" and self.group is None:
            raise ConfigurationError(
                "objective 'ranking' needs the column of each row's query; name it as `group`."
            )
        return self
