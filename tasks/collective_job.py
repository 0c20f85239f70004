"""The parameters of jobs that train by XGBoost's own collective."""

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from prefect_federated.adapters.xgboost.parameters import resolve
from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.tabular import TabularJob


class CollectiveJob(TabularJob):
    """The parameters of a job that trains one booster by XGBoost's own collective."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "xgboost",
        "prefect_federated.adapters.xgboost.pictures",
        "prefect_federated.adapters.xgboost.loopback",
    )

    mode: ClassVar[Literal["histogram", "vertical"]]

    objective: Literal["binary", "multiclass", "regression", "poisson", "ranking"] = Field(
        default="binary", description="What the label is."
    )
    rounds: int = Field(default=20, ge=1, le=100_000, description="Boosting rounds.")
    eta: float = Field(default=0.3, gt=0, le=1, description="Learning rate.")
    max_depth: int = Field(default=6, ge=1, le=64, description="Levels of a tree.")
    xgboost: dict[str, JsonValue] = Field(
        default={}, description="Further parameters of XGBoost's, such as subsample."
    )
    base_score: float | None = Field(
        default=None,
        description="Where the trees begin; if empty, XGBoost estimates it over all sites.",
    )
    eval_metric: list[str] = Field(
        default=[],
        description="XGBoost's metrics, measured after each round over all sites; the last one "
        "counts for early stopping. The objective's own if empty.",
    )
    early_stopping_rounds: int | None = Field(
        default=None,
        ge=1,
        description="End the job after so many rounds in which the model has not become better, "
        "and keep the best one; if empty, all rounds are done.",
    )
    validation_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of each site's training rows that early stopping looks at; without it, "
        "all are trained on, and the rounds' metrics are of the test rows.",
    )
    snapshot_every: int = Field(
        default=5, ge=1, description="Rounds after which the model is written each time."
    )
    on_lost: Literal["wait", "continue"] = Field(
        default="wait",
        description="When a site is lost, all go back to the last snapshot: 'wait' until it is "
        "back, or 'continue' without it as long as the quorum is there.",
    )
    lost_timeout_s: float = Field(
        default=600, gt=0, description="Seconds for which a lost site is waited for."
    )

    explain: bool = Field(
        default=True,
        description="At the end, have the sites say what each column adds to predictions (means "
        "of SHAP values; no row leaves), for a picture. Not where sites have different columns.",
    )

    def parameters(self, classes: int) -> dict[str, JsonValue]:
        """Returns XGBoost's parameters.

        Args:
            classes: Of the label, where it has classes.

        Raises:
            ConfigurationError: there is no such parameter, or the mode cannot do it.
        """
        chosen = resolve(
            self.mode, self.objective, self.xgboost,
            classes=classes, eta=self.eta, max_depth=self.max_depth,
        )  # fmt: skip
        threads = self.config.get("threads", 1)
        if not isinstance(threads, int) or threads < 1:
            raise ConfigurationError(f"config 'threads' is {threads!r}; it is a number from 1.")
        chosen |= {"nthread": threads, "seed": self.seed, "seed_per_iteration": True}
        if self.base_score is not None:
            chosen["base_score"] = self.base_score
        if self.eval_metric:
            chosen["eval_metric"] = list(self.eval_metric)
        return chosen
