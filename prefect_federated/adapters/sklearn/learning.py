"""What sites do in a job that trains a scikit-learn estimator by `partial_fit`.

A site allows further estimators by an executor of its own, which the job then names:

    # my_package/learning.py, installed at the sites
    from prefect_federated.adapters.sklearn.learning import Learning

    main = Learning(allow=["my_package.models.OwnClassifier"])
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from prefect_federated.adapters.sklearn.bayes import site_sums
from prefect_federated.adapters.sklearn.classes import path_of
from prefect_federated.adapters.sklearn.learners import HOLDS_ROWS, learn, make, with_classes
from prefect_federated.adapters.sklearn.measuring import (
    Encoded,
    encoded,
    measured,
    moments,
)
from prefect_federated.adapters.sklearn.preprocessing import with_preprocessing
from prefect_federated.adapters.sklearn.saved import DOCUMENT, from_tensors, to_tensors
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site, TaskFunction
from prefect_federated.messages import Tensors, Update
from prefect_federated.tabular.access import allows_raw_rows, policy_of
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.rows import describe, schema_in


class Learning:
    """The site tasks, for scikit-learn's estimators and those that a site allows beside them.

    Args:
        allow: Import paths of further estimators, where their classes are defined: each has
            `get_params`, `fit`, `partial_fit`, `predict`, and a state of arrays, numbers and texts.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        self._allow = tuple(allow)

    def federated_executors(self) -> Mapping[str, TaskFunction]:
        """Returns kind of site task -> function."""
        return {
            "columns": self.columns, "allowed": self.allowed, "moments": moments, "sums": self.sums,
            "train": self.train, "evaluate": self.evaluate, "alone": self.alone,
            "finish": self.finish,
        }  # fmt: skip

    def columns(self, model: Tensors, site: Site) -> Update:
        """Returns what columns and classes the site has."""
        return describe(site)

    def allowed(self, model: Tensors, site: Site) -> Update:
        """Returns nothing, where the site allows the job's estimator.

        Raises:
            ConfigurationError: it does not, or the estimator cannot be made here.
        """
        self._new(site)
        return Update()

    def sums(self, model: Tensors, site: Site) -> Update:
        """Returns the site's sums by class, of which naive Bayes is made.

        Rows of a class with fewer rows than the policy's `small_cell` are left out: the mean of one
        row is that row.
        """
        here, least = encoded(site), policy_of(site).small_cell
        counts = np.bincount(here.label.astype(int), minlength=here.classes)
        kept = (counts >= least)[here.label.astype(int)]
        sums = site_sums(self._new(site), here.train[kept], here.label[kept], here.classes)
        return Update({**sums, "left_out": np.array(not kept.all())}, weight=len(here.label))

    def train(self, model: Tensors, site: Site) -> Update:
        """Returns the estimator after the job's local epochs on the site's rows.

        Raises:
            ConfigurationError: it may hold rows, and the dataset's policy lets none leave.
        """
        given, here = self._given(model, site), encoded(site)
        if path_of(given) in HOLDS_ROWS and not allows_raw_rows(site):
            raise ConfigurationError(
                f"the state of {path_of(given)} may be rows of the data, and the dataset's policy "
                "at this site does not say raw_rows: true; it sends none. Take the flow 'kmeans'."
            )
        fitted = self._learn(given, here, site, site.round)
        metrics = measured(fitted, here.test, here.test_label, here.classes)
        return Update(
            to_tensors(fitted, self._allow), len(here.train), metrics,
            metrics_weight=max(1, len(here.test)),
        )  # fmt: skip

    def evaluate(self, model: Tensors, site: Site) -> Update:
        """Returns the scores of the job's estimator on the site's test rows."""
        here = encoded(site)
        metrics = measured(self._given(model, site), here.test, here.test_label, here.classes)
        return Update({}, metrics=metrics, metrics_weight=max(1, len(here.test)))

    def alone(self, model: Tensors, site: Site) -> Update:
        """Returns the scores of an estimator that the site has trained alone, as many rounds."""
        here, fitted = encoded(site), self._new(site)
        for number in range(1, int(site.number("rounds", 1)) + 1):
            fitted = self._learn(fitted, here, site, number)
        metrics = measured(fitted, here.test, here.test_label, here.classes)
        return Update({}, metrics=metrics, metrics_weight=max(1, len(here.test)))

    def finish(self, model: Tensors, site: Site) -> Update:
        """Returns the estimator with the encoding before it, as it is saved.

        Asked of one site for an estimator that the server does not know.
        """
        schema, encoding = schema_in(site.config), Encoding.from_json(site.config["encoding"])
        fitted = with_classes(self._given(model, site), schema.classes)
        return Update(to_tensors(with_preprocessing(encoding, fitted), self._allow))

    def _new(self, site: Site) -> Any:
        given = site.config.get("parameters", {})
        if not isinstance(given, dict):
            raise ConfigurationError("parameters: it must be an object of names and values.")
        return make(str(site.config.get("estimator")), given, self._allow)

    def _given(self, model: Tensors, site: Site) -> Any:
        """Returns the estimator that arrived, of the class that the job names; else a new one."""
        new = self._new(site)
        if DOCUMENT not in model:
            return new
        found = from_tensors(model, "the server", self._allow)
        if type(found) is not type(new):
            raise ConfigurationError(
                f"the server sent a {path_of(found)}, and the job names {path_of(new)}."
            )
        return found

    def _learn(self, estimator: Any, here: Encoded, site: Site, number: int) -> Any:
        seed = int(np.random.SeedSequence([site.seed, number]).generate_state(1)[0])
        return learn(
            estimator, here.train, here.label, here.classes,
            epochs=int(site.number("local_epochs", 1)),
            batch_size=int(site.number("batch_size", 32)),
            seed=seed,
        )  # fmt: skip


main = Learning()
"""The executor that jobs name by default; it allows scikit-learn's estimators only."""
