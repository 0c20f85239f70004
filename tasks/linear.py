"""The steps of a job of a linear model: agree, encode, ask for sums, publish.

The arithmetic is in `prefect_federated.linear`; here it meets the sites and the snapshots.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from prefect_federated.errors import ModelUndetermined
from prefect_federated.linear.design import Design
from prefect_federated.linear.estimators import estimator_of
from prefect_federated.linear.fitting import Family, Fit, Model, fit_gram, fit_newton, search
from prefect_federated.linear.gram import Gram
from prefect_federated.linear.inference import Coefficient, shown, table
from prefect_federated.linear.losses import Sums
from prefect_federated.linear.newton import Newton
from prefect_federated.linear.site import few_in
from prefect_federated.messages import JsonValue, Tensors, Update
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.pipelines import (
    check_installed,
    encoding_in,
    encoding_tensors,
    missing_notes,
    pipeline_files,
)
from prefect_federated.tasks.snapshots import State, restore, snapshot
from prefect_federated.tasks.tabular import FittedRef, Tabular, TabularJob

PENALISED = ("ridge", "elastic_net")
OBJECTIVES = {
    "squared": "regression", "logistic": "binary", "multinomial": "multiclass", "poisson": "poisson"
}  # fmt: skip

LEAVES = {
    True: (
        "for each column the number of values, their mean and squared deviations, and categories",
        "once, the products of the encoded columns and the label about their means, summed over "
        "the training rows, and the means",
        "the model's metrics on the site's own test rows",
    ),
    False: (
        "for each column the number of values, their mean and squared deviations, and categories",
        "in each round gradient, curvature and deviance at the round's coefficients, summed over "
        "the training rows",
        "the model's metrics on the site's own test rows",
    ),
}
"""What leaves each site, for models of squares and for the others."""
FEW_ROWS = "what it has sent tells more of a few rows than of others: those that have"


class LinearJob(TabularJob):
    """The parameters of a job of a linear model."""

    imports: ClassVar[tuple[str, ...]] = (
        *TabularJob.imports,
        "prefect_federated.adapters.sklearn.saved",
        "prefect_federated.adapters.sklearn.preprocessing",
        "sklearn.linear_model",
    )

    family: Family = Field(
        default="least_squares",
        description="Which model: of numbers, 'least_squares', 'ridge', 'elastic_net'; of two "
        "classes, 'logistic'; of more, 'multinomial'; of counts, 'poisson'.",
    )
    alpha: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the penalty, as scikit-learn's estimator has it, or 1 / C where "
        "that has C; if empty, 1 for 'ridge' and 'elastic_net', and none for the others.",
    )
    l1_ratio: float = Field(
        default=0.5, ge=0, le=1, description="Of an elastic net: share of the absolute values."
    )
    elastic_net_loss: Literal["squared", "logistic"] = Field(
        default="squared", description="Of an elastic net: of numbers, or of two classes."
    )
    level: float = Field(
        default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals."
    )
    rounds: int = Field(default=25, ge=1, le=1000, description="Rounds of Newton's method at most.")
    executor: str = Field(
        default="prefect_federated.linear.site",
        description="Executor that the sites run; the built-in one fits linear models.",
        pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
    )

    @model_validator(mode="after")
    def _penalised_families_have_a_penalty(self) -> "LinearJob":
        if self.family in PENALISED and self.alpha == 0:
            raise ValueError(f"family {self.family!r} needs an alpha above 0")
        if self.family == "least_squares" and self.alpha:
            raise ValueError("family 'least_squares' has no alpha; with one it is 'ridge'")
        return self

    @property
    def model(self) -> Model:
        """The model, before the sites' classes are known."""
        alpha = self.alpha if self.alpha is not None else float(self.family in PENALISED)
        ratio = self.l1_ratio if self.family == "elastic_net" else 0.0
        return Model(self.family, self.elastic_net_loss, alpha, ratio)


class LinearRef(FittedRef):
    """Where a fitted linear model is, and its coefficients.

    Args:
        coefficients: In the features' own units.
        rows: Training rows of all sites.
        deviance: What is left: for least squares, the sum of squares.
        r2: Share of the label's variance that is explained, for least squares.
        rounds: Rounds that it took.
    """

    coefficients: list[Coefficient]
    rows: int
    deviance: float
    r2: float | None = None
    rounds: int


class Linear:
    """One job's steps.

    Args:
        fed: The running federation.
        job: The job's parameters.
    """

    def __init__(self, fed: Federation, job: LinearJob) -> None:
        check_installed()
        self._fed, self._job = fed, job
        self._tabular = Tabular(fed, job, objective=OBJECTIVES[job.model.loss])
        self._schema = self._tabular.agree()
        classes = tuple(str(each) for each in self._schema.classes)
        self._model = replace(job.model, classes=classes)
        kept = restore()
        self._encoding = (
            self._tabular.fit_encoding() if kept is None else encoding_in(kept.model, self._schema)
        )
        self._design = Design(self._encoding)
        self._rounds = 0 if kept is None else kept.round
        self._answered: Sequence[str] = sorted(self._tabular.columns)
        self._few: dict[str, list[str]] = {}
        self._search: Newton | None = None
        self._fit: Fit | None = None
        if kept is not None:
            self._search = self._new_search(float(kept.extra["rows"]["rows"][0]))
            self._search.restore(kept.extra["search"])
            self._finish_search()

    @property
    def is_done(self) -> bool:
        """Whether the coefficients are known."""
        return self._fit is not None

    def ask(self) -> None:
        """Asks for one round of sums, and takes the step that follows from them.

        Raises:
            ModelUndetermined: the data determine no single best model, or not in these rounds.
            QuorumNotReached: too few sites have answered.
            UpdateRejected: a site's sums do not fit.
        """
        self._rounds += 1
        if self._model.loss == "squared":
            names = self._design.names
            grams = {
                reply.site: Gram.of(reply.tensors, len(names), reply.site)
                for reply in self._asked("gram", {})
            }
            self._fit = fit_gram(self._model, names, grams)
            return
        if self._rounds > self._job.rounds:
            raise ModelUndetermined(
                f"the coefficients are not known after {self._job.rounds} rounds. Allow more "
                "`rounds`, choose a larger `alpha`, or look for columns that hardly vary."
            )
        self._ask_newton()

    def publish(self) -> LinearRef:
        """Has the model measured, compares it with the sites' own, and writes it with its card.

        Raises:
            SnapshotFailed: it could not be written.
        """
        fit, model, job = self._known(), self._model, self._job
        self._tabular.alone(**self._config())
        self._tabular.evaluate({"coefficients": fit.coefficients}, **self._config())
        rows = table(
            self._design.units, fit.coefficients, fit.covariance, degrees=fit.degrees,
            level=job.level, classes=model.classes,
        )  # fmt: skip
        estimator = estimator_of(model, fit, self._rounds)
        classes = self._schema.classes
        if hasattr(estimator, "classes_"):
            estimator.classes_ = np.array(classes)
        reference = self._tabular.publish(
            pipeline_files(self._encoding, estimator, drop_first=True),
            rounds=self._rounds,
            parameters={
                "family": model.family, "loss": model.loss, "alpha": model.alpha,
                "l1_ratio": model.l1_ratio,
            },
            leaves=LEAVES[model.loss == "squared"],
            notes=self._notes(),
            tables={"Coefficients, in the features' own units": shown(rows, job.level)},
        )  # fmt: skip
        return LinearRef(
            **reference.model_dump(),
            coefficients=rows,
            rows=round(fit.rows),
            deviance=fit.deviance,
            r2=fit.r2,
            rounds=self._rounds,
        )

    def _ask_newton(self) -> None:
        search = self._search
        size = self._model.lines * (len(self._design.names) + 1)
        at = np.zeros(size) if search is None else search.asked
        start = self._model.loss == "poisson" and search is None
        point = {"coefficients": at.reshape(self._model.lines, -1)}
        answers = {
            reply.site: Sums.of(reply.tensors, size, reply.site)
            for reply in self._asked("newton", point, start=start)
        }
        rows = sum(each.rows for each in answers.values())
        if search is None:
            search = self._search = self._new_search(rows)
        search.take(answers)
        extra = {"search": search.tensors(), "rows": {"rows": np.array([rows])}}
        snapshot(State(encoding_tensors(self._encoding), self._rounds, extra))
        self._finish_search()

    def _asked(self, kind: str, point: Tensors, **config: JsonValue) -> list[Update]:
        replies = self._fed.broadcast(
            kind, point, sites=sorted(self._tabular.columns), config=self._config(**config),
            round=self._rounds, late_weight=0, same_tensors=False,
        )  # fmt: skip
        updates = [reply for reply in replies if isinstance(reply, Update)]
        self._answered = [update.site for update in updates]
        self._few |= {update.site: few for update in updates if (few := few_in(update))}
        return updates

    def _config(self, **more: JsonValue) -> dict[str, JsonValue]:
        return self._tabular.config(
            encoding=self._encoding.to_json(), linear=self._model.to_json(), **more
        )

    def _notes(self) -> list[str]:
        few = [f"{site}: {FEW_ROWS} {', '.join(its)}" for site, its in sorted(self._few.items())]
        return [*missing_notes(self._tabular.columns, self._answered), *few]

    def _new_search(self, rows: float) -> Newton:
        return search(self._model, self._design.names, rows)

    def _finish_search(self) -> None:
        if self._search is not None and self._search.is_done:
            self._fit = fit_newton(self._model, self._design.names, self._search)

    def _known(self) -> Fit:
        if self._fit is None:
            raise RuntimeError("ask until is_done")
        return self._fit
