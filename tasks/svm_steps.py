"""The steps of a job that trains support vector machines, by any of its three methods."""

import json

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from prefect_federated.adapters.sklearn.fourier import fourier, scale_gamma
from prefect_federated.adapters.sklearn.hinge import Newton, linear_svc
from prefect_federated.adapters.sklearn.learners import with_classes
from prefect_federated.adapters.sklearn.preprocessing import with_preprocessing
from prefect_federated.adapters.sklearn.saved import fitted_of, from_tensors, to_tensors
from prefect_federated.adapters.sklearn.voting import Vote, check_member, votes_of, with_names
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.messages import JsonValue, Tensor, Tensors, Update
from prefect_federated.tabular.answers import numbers_in
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.pipelines import encoding_in, encoding_tensors
from prefect_federated.tasks.snapshots import State, restore, snapshot
from prefect_federated.tasks.svm import WITHOUT_ROWS, SvmJob
from prefect_federated.tasks.tabular import FittedRef, Tabular


class Svm:
    """One job's SVM: prepares the sites, trains by the job's method, publishes.

    Args:
        fed: The running federation.
        job: The job's parameters, checked.

    Raises:
        SitesDisagree: about the columns or the classes.
        ConfigurationError: a site does not let rows leave, or has one class and the method needs
            two.
    """

    def __init__(self, fed: Federation, job: SvmJob) -> None:
        self._fed, self._job = fed, job
        self._tab = Tabular(fed, job, objective=job.objective, needs=("scikit-learn",))
        self._schema = self._tab.agree()
        self._state = restore()
        self._sites = sorted(self._tab.columns)
        self._notes: list[str] = []
        self._kept: dict[str, int] = {}
        self._rounds = 0
        if self._state is None:
            self._encoding = self._tab.fit_encoding()
            self._gamma = 1.0
            self._gamma = job.gamma or self._pooled_gamma()
        else:
            kept = self._state.extra["prepared"]
            self._encoding = encoding_in(kept, self._schema)
            self._gamma = float(kept["gamma"])
        self._sites = self._ready()

    def _own_config(self) -> dict[str, JsonValue]:
        job = self._job
        return {
            "encoding": self._encoding.to_json(), "kernel": job.kernel, "gamma": self._gamma,
            "C": job.C, "degree": job.degree, "components": job.components, "job_seed": job.seed,
            "share_support_vectors": job.share_support_vectors, "rows_leave": job.rows_leave,
        }  # fmt: skip

    def _ask(self, kind: str, model: Tensors | None = None, round: int = 0) -> list[Update]:
        """Returns the sites' updates in the order of their names, so that sums are the same."""
        config = self._tab.config(**self._own_config())
        replies = self._fed.broadcast(
            kind, model, sites=self._sites, round=round, config=config, same_tensors=False
        )
        return sorted((r for r in replies if isinstance(r, Update)), key=lambda each: each.site)

    def _pooled_gamma(self) -> float:
        if self._job.kernel == "linear":
            return 1.0
        return scale_gamma(_by_site(self._ask("spread")), self._columns)

    def _ready(self) -> list[str]:
        job, answers = self._job, self._ask("ready")
        shapes: dict[str, tuple[int, ...]] = {
            "classes": (len(self._schema.classes),), "permission": (),
        }  # fmt: skip
        said = {each.site: numbers_in(each.tensors, shapes, each.site) for each in answers}
        refusing = [each for each in answers if not said[each.site]["permission"]]
        if job.rows_leave and refusing:
            raise ConfigurationError(self._refusal(refusing))
        single = {
            site: int(np.flatnonzero(its["classes"])[0])
            for site, its in said.items()
            if np.count_nonzero(its["classes"]) == 1
        }
        if single and job.method != "fourier":
            names, classes = sorted(single), self._schema.classes
            has = "; ".join(f"site {name!r} has only {classes[single[name]]!r}" for name in names)
            raise ConfigurationError(
                f"{has} in column {self._schema.label!r} of its training rows, and the sites "
                f"together have {', '.join(repr(each) for each in classes)}; no SVM can be trained "
                f"on one class. Leave {' and '.join(names)} out with `sites`, or take method "
                "'fourier', in which such a site counts."
            )
        return [each.site for each in answers]

    def _refusal(self, refusing: list[Update]) -> str:
        told = []
        for each in refusing:
            kept = each.tensors.get("kept")
            of = ""
            if kept is not None:
                of = " ({:.0f} of its {:.0f} rows would leave)".format(
                    *numbers_in(each.tensors, {"kept": (2,)}, each.site)["kept"]
                )
            told.append(f"{each.site}{of}")
        return (
            f"support vectors are rows of the data, and {len(refusing)} of the sites do not let "
            f"rows of dataset {self._job.dataset!r} leave: {', '.join(told)}. No site has sent "
            "any. Whoever is responsible for the data there can set `raw_rows: true` in the "
            "privacy section of that dataset; or leave those sites out with `sites`. "
            + WITHOUT_ROWS
        )

    def alone(self) -> None:
        """Has each site measure an SVM of its own rows, for comparison."""
        self._tab.alone(**self._own_config())

    def fourier(self) -> Pipeline:
        """Returns a linear SVM in the shared Fourier features, at the optimum of all sites' rows.

        A snapshot is written after each of Newton's steps.
        """
        start = Newton.start(len(self._schema.classes), self._width).state
        state = self._state or State(start)
        newton, self._rounds, few = Newton(state.model), state.round, set[str]()
        before = (
            None if self._state is None else json.loads(bytes(state.extra["prepared"]["sites"]))
        )
        while not newton.is_done and self._rounds < self._job.rounds:
            self._rounds += 1
            replies = self._ask("sums", {"coef": newton.coef}, self._rounds)
            there = [each.site for each in replies]
            few |= {each.site for each in replies if np.any(each.tensors.get("few", False))}
            if before is not None and there != before:  # the sums are those of other rows
                newton = newton.elsewhere()
            newton, before = newton.after(_by_site(replies)), there
            snapshot(State(newton.state, self._rounds, {"prepared": self._prepared(there)}))
        self._note_missing(before or [])
        if few:
            self._notes.append(
                f"At {', '.join(sorted(few))} few rows were within the margin: what was sent tells "
                "more of them than of others."
            )
        if not newton.is_done:
            self._notes.append(
                f"The SVM had not reached the optimum after {self._rounds} rounds; give it more."
            )
        numbers = np.arange(len(self._schema.classes))
        return self._in_features(linear_svc(newton.best, numbers, self._job.C))

    def ensemble(self) -> Pipeline:
        """Returns the sites' own SVMs as one classifier."""
        self._rounds, members = 1, []
        replies = self._ask("member", round=1)
        self._note_missing([each.site for each in replies])
        for each in replies:
            fitted = from_tensors(each.tensors, f"site {each.site!r}")
            kind = SVC if self._job.rows_leave else LinearSVC
            columns = self._columns if self._job.rows_leave else self._width
            check_member(fitted, each.site, kind, len(self._schema.classes), columns)
            members.append((each.site, fitted, each.weight))
        vote = votes_of(members, list(range(len(self._schema.classes))), self._job.vote)
        return self._in_features(vote)

    def support_vectors(self) -> Pipeline:
        """Returns one SVM of all sites' support vectors."""
        self._rounds = 1
        replies = self._ask("support", round=1)
        self._note_missing([each.site for each in replies])
        vectors, labels = [], []
        for each in replies:
            found = len(np.atleast_1d(each.tensors.get("label", np.zeros(0))))
            shapes = {"vectors": (found, self._columns), "label": (found,)}
            its = numbers_in(each.tensors, shapes, each.site, of="the support vectors'")
            if not np.isin(its["label"], np.arange(len(self._schema.classes))).all():
                raise UpdateRejected(
                    f"site {each.site!r}: its support vectors have classes that are none of the "
                    f"{len(self._schema.classes)} that the sites have agreed on."
                )
            vectors.append(its["vectors"])
            labels.append(its["label"])
            self._kept[each.site] = found
        job = self._job
        pooled = SVC(C=job.C, kernel=job.kernel, gamma=self._gamma, degree=job.degree)
        pooled.fit(
            np.concatenate(vectors),
            np.concatenate(labels),
        )
        return Pipeline([("model", pooled)])

    def publish(self, model: Pipeline) -> FittedRef:
        """Has the sites evaluate the model; saves it with its encoding and its card."""
        self._tab.evaluate(to_tensors(model), **self._own_config())
        last = model[-1]
        name = with_names if isinstance(last, Vote) else with_classes
        name(last, self._schema.classes)
        whole = with_preprocessing(self._encoding, *(step for _, step in model.steps))
        return self._tab.publish(
            fitted_of(whole), rounds=self._rounds, parameters=self._parameters(),
            leaves=self._leaves(), notes=self._notes,
        )  # fmt: skip

    def _prepared(self, sites: list[str]) -> dict[str, Tensor]:
        """Returns what a job that comes back needs beside Newton's state."""
        return {
            **encoding_tensors(self._encoding),
            "gamma": np.array(self._gamma),
            "sites": np.frombuffer(json.dumps(sites).encode(), np.uint8),
        }

    def _note_missing(self, there: list[str]) -> None:
        missing = sorted(set(self._tab.columns) - set(there))
        if missing:
            self._notes.append(f"The model is without the rows of {', '.join(missing)}.")

    def _in_features(self, model: BaseEstimator) -> Pipeline:
        job = self._job
        if job.kernel == "linear" or job.rows_leave:
            return Pipeline([("model", model)])
        features = fourier(self._gamma, job.components, job.seed, self._columns)
        return Pipeline([("fourier", features), ("model", model)])

    @property
    def _columns(self) -> int:
        return len(self._encoding.names)

    @property
    def _width(self) -> int:
        return self._columns if self._job.kernel == "linear" else self._job.components

    def _parameters(self) -> dict[str, JsonValue]:
        job = self._job
        said: dict[str, JsonValue] = {"method": job.method, "kernel": job.kernel, "C": job.C}
        if job.kernel != "linear":
            said["gamma"] = self._gamma
        if job.kernel == "poly":
            said["degree"] = job.degree
        if job.kernel == "rbf" and not job.rows_leave:
            said["components"] = job.components
        if job.method == "ensemble":
            said["vote"] = job.vote
        return said

    def _leaves(self) -> list[str]:
        job, leaves = self._job, ["Numbers, sums and squared deviations of the numeric columns."]
        if job.kernel != "linear" and job.gamma is None:
            leaves.append("Number, mean and squared deviations of all cells together.")
        if job.method == "fourier":
            leaves.append(
                "In each round the gradient and the Hessian of the loss: sums over those rows that "
                "are within the margin. Where these are few, the sums tell much of them."
            )
        elif job.rows_leave:
            kept = ", ".join(f"{site} {n}" for site, n in sorted(self._kept.items()))
            leaves.append(
                "ROWS OF THE DATA, to the server, into the model, and with it to all other sites: "
                "the support vectors, encoded" + (f" ({kept})." if kept else ".")
            )
        else:
            leaves.append("The weights of the site's own linear SVM, and its calibration.")
        return [*leaves, "Scores of models on the site's test rows."]


def _by_site(replies: list[Update]) -> dict[str, Tensors]:
    return {each.site: each.tensors for each in replies}
