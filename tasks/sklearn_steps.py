"""The steps of a job that trains a scikit-learn estimator: exactly, by averages, or as a relay."""

from typing import Any

import numpy as np

from prefect_federated.adapters.sklearn.bayes import merged
from prefect_federated.adapters.sklearn.classes import path_of
from prefect_federated.adapters.sklearn.learners import (
    HOLDS_ROWS,
    Combination,
    averaged,
    combination,
    make,
    task_of,
    with_classes,
)
from prefect_federated.adapters.sklearn.preprocessing import with_preprocessing
from prefect_federated.adapters.sklearn.saved import (
    fitted_in,
    fitted_of,
    from_tensors,
    to_tensors,
)
from prefect_federated.errors import ConfigurationError, QuorumNotReached
from prefect_federated.messages import JsonValue, SiteFailure, Tensors, Update
from prefect_federated.tabular.saved import Fitted
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.pipelines import encoding_in, encoding_tensors
from prefect_federated.tasks.sklearn import SklearnJob
from prefect_federated.tasks.snapshots import State, restore, snapshot
from prefect_federated.tasks.tabular import FittedRef, Tabular

_OWN = "sklearn."


class Learner:
    """One job's estimator: prepares the sites, trains in the way it can, publishes.

    An estimator that is not scikit-learn's is not imported here: it only passes through, from site
    to site.

    Args:
        fed: The running federation.
        job: The job's parameters.

    Raises:
        ConfigurationError: the estimator, its parameters or the way to combine cannot be.
        SitesDisagree: about the columns or the classes.
    """

    def __init__(self, fed: Federation, job: SklearnJob) -> None:
        self._fed, self._job = fed, job
        self._new, self.way = look(job)
        self._tab = Tabular(fed, job, objective=job.objective, needs=("scikit-learn",))
        self._state = restore()
        if self._new is None:
            self._check_allowed()
        self._schema = self._tab.agree()
        self._sites = sorted(self._tab.columns)
        if self._state is None:
            self._encoding = self._tab.fit_encoding(scale=job.scale)
        else:
            self._encoding = encoding_in(self._state.extra["prepared"], self._schema)
        self._rounds = 0
        self._notes: list[str] = []

    def alone(self) -> None:
        """Has each site train an estimator alone, for comparison."""
        self._tab.alone(**self._own_config())

    def exact(self) -> Tensors:
        """Returns naive Bayes of all sites' sums."""
        self._rounds = 1
        replies = self._fed.broadcast(
            "sums", sites=self._sites, round=1, config=self._config(), same_tensors=False
        )
        updates = _sorted(replies)
        sums = {each.site: each.tensors for each in updates}
        self._notes += [
            f"{each.site} has left out rows of classes that have fewer there than its small_cell."
            for each in updates
            if np.any(each.tensors.get("left_out", False))
        ]
        missing = sorted(set(self._sites) - {each.site for each in updates})
        if missing:
            self._notes.append(f"The model is without the rows of {', '.join(missing)}.")
        numbers = np.arange(len(self._schema.classes), dtype=np.float64)
        return to_tensors(merged(self._new, sums, numbers, len(self._encoding.names)))

    def rounds(self) -> Tensors:
        """Returns the estimator after the job's rounds; a snapshot is written after each."""
        kept = encoding_tensors(self._encoding)
        state = self._state or State({})
        while state.round < self._job.rounds:
            number = state.round + 1
            step = self._relayed if self.way == "relay" else self._averaged
            model = step(state.model, number)
            state = State(model, number, {"prepared": kept})
            snapshot(state)
        self._rounds = state.round
        return state.model

    def publish(self, model: Tensors) -> FittedRef:
        """Has the sites evaluate the estimator; saves it with its encoding and its card."""
        self._tab.evaluate(model, **self._own_config())
        job = self._job
        return self._tab.publish(
            self._saved(model), rounds=self._rounds,
            parameters={"estimator": job.estimator, "combine": self.way, **job.parameters},
            leaves=self._leaves(), notes=self._notes,
        )  # fmt: skip

    def _check_allowed(self) -> None:
        job = self._job
        config: dict[str, JsonValue] = {
            "estimator": job.estimator,
            "parameters": dict(job.parameters),
        }
        replies = self._fed.broadcast("allowed", quorum=0, config=config, same_tensors=False)
        refused = [f"{r.site}: {r.reason}" for r in replies if isinstance(r, SiteFailure)]
        if refused:
            raise ConfigurationError(
                f"{job.estimator} cannot be trained at {'; '.join(sorted(refused))} Name an "
                "executor of the sites that allows it: docs/scikit-learn.md."
            )

    def _averaged(self, model: Tensors, number: int) -> Tensors:
        replies = self._fed.broadcast(
            "train",
            model,
            sites=self._sites,
            round=number,
            config=self._config(),
            same_tensors=False,
        )
        sites = {
            each.site: (from_tensors(each.tensors, f"site {each.site!r}"), each.weight)
            for each in _sorted(replies)
        }
        lines = len(self._schema.classes) if len(self._schema.classes) > 2 else 1
        columns = len(self._encoding.names)
        shape = (lines, columns) if self._schema.classes else (columns,)  # of a regressor
        return to_tensors(averaged(type(self._new), sites, shape))

    def _relayed(self, model: Tensors, number: int) -> Tensors:
        relay = self._fed.relay(
            "train", model, sites=self._sites, round=number, on_missing=self._job.on_missing,
            config=self._config(), same_tensors=False,
        )  # fmt: skip
        for reply in relay:
            del reply  # the next site has its tensors
        return relay.model

    def _saved(self, model: Tensors) -> Fitted:
        if self._new is None:
            for site in self._sites:
                asked = self._fed.broadcast(
                    "finish", model, sites=[site], quorum=0, config=self._config(),
                    same_tensors=False,
                )  # fmt: skip
                for reply in _sorted(asked):
                    return fitted_in(reply.tensors)
            raise QuorumNotReached("no site gave the estimator with its encoding, to be saved.")
        fitted = with_classes(from_tensors(model, "the sites"), self._schema.classes)
        return fitted_of(with_preprocessing(self._encoding, fitted))

    def _own_config(self) -> dict[str, JsonValue]:
        job = self._job
        return {
            "encoding": self._encoding.to_json(), "estimator": job.estimator,
            "parameters": dict(job.parameters), "local_epochs": job.local_epochs,
            "batch_size": job.batch_size, "rounds": job.rounds,
        }  # fmt: skip

    def _config(self) -> dict[str, JsonValue]:
        return self._tab.config(**self._own_config())

    def _leaves(self) -> list[str]:
        what = {
            "exact": "Sums by class: numbers of rows, and of each column the mean and the squared "
            "deviations, or the counts.",
            "average": "In each round the estimator that the site has trained: its coefficients.",
            "relay": "In each round the estimator that the site has trained, all of its state, to "
            "the server and the next site.",
        }[self.way]
        if self._new is not None and path_of(self._new) in HOLDS_ROWS:
            what += " It may be ROWS OF THE DATA."
        first = "Numbers, sums and squared deviations of the numeric columns."
        return [first, what, "Scores of models on the site's test rows."]


def look(job: SklearnJob) -> tuple[Any, Combination]:
    """Returns a new estimator, None if it is not scikit-learn's; and how it is combined."""
    if not job.estimator.startswith(_OWN):
        if job.combine not in ("auto", "relay"):
            raise ConfigurationError(
                f"combine: {job.estimator} is not scikit-learn's, and goes from site to site: "
                "'relay'."
            )
        return None, "relay"
    new = make(job.estimator, job.parameters)
    wanted = {"classes": ("binary", "multiclass"), "values": ("regression",), "none": ("none",)}
    fitting = wanted[task_of(new)]
    if job.objective not in fitting:
        raise ConfigurationError(
            f"objective {job.objective!r} is not what {job.estimator} learns; it is "
            f"{' or '.join(repr(each) for each in fitting)}."
        )
    return new, combination(new, job.combine)


def _sorted(replies: Any) -> list[Update]:
    """Returns the sites' updates in the order of their names, so that sums are the same."""
    return sorted((r for r in replies if isinstance(r, Update)), key=lambda each: each.site)
