"""The rounds that training jobs share: selection, early stopping, resuming, the end."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from prefect import flow

from prefect_federated.aggregators import weighted_mean
from prefect_federated.errors import ConfigurationError, FederatedError
from prefect_federated.messages import JsonValue
from prefect_federated.tasks.events import Hooks
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import takes
from prefect_federated.tasks.rounds import Rounds, TrainingJob
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import ModelRef, read_model
from prefect_federated.transport.signals import Moment

EXECUTOR = "tests.tasks.rising_executor"

pytestmark = pytest.mark.usefixtures("prefect_api")


class Trial:
    """Runs a job of rounds on the sites a, b and c, and remembers what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: list[Moment] = []
        self.fails_once_in: int | None = None
        self.began: list[int] = []

    def run(
        self, scores: list[float], rounds: int, retries: int = 0,
        config: Mapping[str, JsonValue] | None = None, **fields: object,
    ) -> ModelRef:  # fmt: skip
        @flow(retries=retries, persist_result=True, result_serializer="json")
        @takes(TrainingJob)
        def rising(job: TrainingJob) -> ModelRef:
            with federation(job, hooks=Hooks(best_model=[self.best.append])) as fed:
                todo = Rounds(fed, job)
                for state in todo:
                    self.began.append(todo.number)
                    if self.fails_once_in == todo.number:
                        self.fails_once_in = None
                        raise FederatedError("once")
                    updates = todo.ask("train", state.model)
                    todo.done({**state.model, **weighted_mean(updates)})
                return todo.finish()

        settings = {"scores": {str(n): score for n, score in enumerate(scores)}, **(config or {})}
        with simulating(Simulation(("a", "b", "c"), 2, self.folder, self.folder)):
            returned: ModelRef = rising(executor=EXECUTOR, rounds=rounds, config=settings, **fields)
        return returned


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def kinds(reference: ModelRef) -> list[str]:
    return [str(row["kind"]) for row in reference.history]


def rounds_in(path: str | None) -> float:
    assert path is not None
    return float(read_model(Path(path))["rounds"])


@pytest.mark.parametrize("validates", [True, False])
def test_the_best_model_is_chosen_by_what_the_sites_measure(trial: Trial, validates: bool) -> None:
    """Before they train from it where they do, else when asked; each model once."""
    done = trial.run(
        [0.1, 0.5, 0.9, 0.3, 0.2], rounds=4, best_by="score", config={"validates": validates}
    )
    assert (done.best_round, rounds_in(done.best_path), rounds_in(done.path)) == (2, 2.0, 4.0)
    extra = [] if validates else ["evaluate"]
    assert kinds(done) == ["initialize", *["train", *extra] * 4, "evaluate"]
    told = [(moment.round, moment.detail["value"]) for moment in trial.best]
    assert told == [(0, 0.1), (1, 0.5), (2, 0.9)][0 if validates else 1 :]


def test_the_last_model_may_be_the_best(trial: Trial) -> None:
    done = trial.run([0.1, 0.5, 0.9], rounds=2, best_by="score", config={"validates": True})
    assert (done.best_round, rounds_in(done.best_path)) == (2, 2.0)


def test_less_is_better_with_a_minus(trial: Trial) -> None:
    done = trial.run([5, 3, 4], rounds=2, best_by="-score", config={"validates": True})
    assert done.best_round == 1


def test_sites_weigh_by_their_examples(trial: Trial) -> None:
    """Site a (1 of 6 examples) finds every model worse by 6: the mean is lower by 1."""
    done = trial.run([0.0, 2.0], rounds=1, best_by="score", config={"validates": True, "spread": 6})
    assert [moment.detail["value"] for moment in trial.best] == [-1.0, 1.0]
    assert done.best_round == 1


@pytest.mark.parametrize("validates", [True, False])
def test_a_job_ends_when_its_models_do_not_become_better(trial: Trial, validates: bool) -> None:
    scores = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9]
    done = trial.run(scores, rounds=6, best_by="score", patience=2, config={"validates": validates})
    # The model of round 3 is judged after it, or by the sites before they train from it.
    assert done.round == (4 if validates else 3)
    assert (done.best_round, rounds_in(done.best_path)) == (1, 1.0)


def test_a_job_that_comes_back_remembers_its_best_model(trial: Trial) -> None:
    trial.fails_once_in = 4
    scores = [0.1, 0.9, 0.2, 0.3, 0.8, 0.2]
    done = trial.run(
        scores, rounds=5, retries=1, best_by="score", patience=10, config={"validates": True}
    )
    assert trial.began == [1, 2, 3, 4, 4, 5]
    assert (done.round, done.best_round, rounds_in(done.best_path)) == (5, 1, 1.0)
    assert [moment.round for moment in trial.best] == [0, 1]


@pytest.mark.parametrize("validates", [True, False])
def test_a_metric_that_is_not_measured_names_those_that_are(trial: Trial, validates: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"chosen by 'auc', but .* measures score"):
        trial.run([0.1, 0.5], rounds=1, best_by="auc", config={"validates": validates})


def test_a_metric_that_is_not_finite_never_wins(trial: Trial) -> None:
    """A site that measures it has failed, with its reason in the table; the others choose."""
    done = trial.run(
        [0.1, 0.5, 0.3], rounds=2, best_by="score", quorum=2,
        config={"validates": True, "spread": float("inf")},
    )  # fmt: skip
    assert done.best_round == 1
    failures = [str(row["failures"]) for row in done.history if row["kind"] == "train"]
    assert all("'val_score' is -inf" in failure for failure in failures)


def test_patience_without_a_metric_is_refused(trial: Trial) -> None:
    with pytest.raises(ValueError, match="patience needs best_by"):
        trial.run([0.1], rounds=1, patience=2)


def test_updates_that_are_changes_of_the_model_are_refused(trial: Trial) -> None:
    with pytest.raises(ValueError, match="takes them for models"):
        trial.run([0.1], rounds=1, filters=[{"filter": "difference", "at": "leaving_site"}])
