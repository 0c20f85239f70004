"""Calls as a flow makes them, on virtual sites."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from prefect import flow

from prefect_federated.errors import (
    ConfigurationError,
    ExecutorNotFound,
    JobError,
    NotEnoughSites,
    QuorumNotReached,
)
from prefect_federated.messages import JsonValue, SiteFailure, Update
from prefect_federated.tasks.federation import Federation, current_federation, federation
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating

EXECUTOR = "tests.flows.trial_executors"
MODEL = {"slopes": np.zeros(4), "offset": np.zeros(())}
Result = TypeVar("Result")

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def run_in(tmp_path: Path) -> Callable[..., object]:
    """Runs a function of a federation inside a flow, on the virtual sites a, b, c, d and e."""

    def run(controller: Callable[[Federation], Result], **fields: JsonValue) -> Result:
        @flow
        @takes(JobParameters)
        def trial(job: JobParameters) -> list[Result]:
            with federation(job) as fed:
                assert current_federation() is fed
                return [controller(fed)]

        with simulating(Simulation(tuple("abcde"), 1, tmp_path, tmp_path)):
            returned: list[Result] = trial(**{"executor": EXECUTOR, **fields})
        return returned[0]

    return run


def test_the_sites_of_a_job_are_those_it_names(run_in: Callable[..., object]) -> None:
    assert run_in(lambda fed: fed.sites, sites=["b", "d", "b"]) == ["b", "d"]
    with pytest.raises(LookupError):
        current_federation()


def test_replies_are_read_as_they_arrive_and_once(run_in: Callable[..., object]) -> None:
    def controller(fed: Federation) -> list[str]:
        replies = fed.broadcast("train", MODEL, round=1)
        names = [reply.site for reply in replies]
        with pytest.raises(RuntimeError, match="read once"):
            list(replies)
        assert [row["kind"] for row in fed.reporter.history] == ["train"]
        return names

    names = run_in(controller)
    assert isinstance(names, list)
    assert sorted(names) == list("abcde")


def test_calls_that_nobody_waits_for_are_read_later_in_any_order_and_as_often(
    run_in: Callable[..., object],
) -> None:
    def controller(fed: Federation) -> list[int]:
        trained = fed.broadcast.submit("train", MODEL, round=1)
        evaluated = fed.broadcast.submit("evaluate", MODEL, sites=["a", "b"], round=1)
        counts = [len(evaluated.result()), len(trained.result()), len(trained.result())]
        assert trained.result() == trained.result()
        return counts

    assert run_in(controller) == [2, 5, 5]


def test_a_call_that_nobody_reads_does_not_keep_the_flow(run_in: Callable[..., object]) -> None:
    def controller(fed: Federation) -> str:
        fed.broadcast("train", MODEL, round=1)
        fed.broadcast.submit("train", MODEL, round=2)
        next(iter(fed.broadcast("train", MODEL, round=3)))
        return "done"

    assert run_in(controller) == "done"


def test_an_error_in_the_middle_of_the_replies_ends_the_flow_with_that_error(
    run_in: Callable[..., object],
) -> None:
    def controller(fed: Federation) -> None:
        fed.broadcast("train", MODEL, round=1)
        for _ in fed.broadcast("train", MODEL, round=2):
            raise ZeroDivisionError("in the flow")

    with pytest.raises(ZeroDivisionError, match="in the flow"):
        run_in(controller)


def test_terms_of_a_call_go_over_those_of_the_job(run_in: Callable[..., object]) -> None:
    def controller(fed: Federation) -> list[str]:
        said = []
        for quorum in (None, 4, 0.9):
            try:
                replies = list(fed.broadcast("train", MODEL, round=1, quorum=quorum))
                said.append(f"{sum(isinstance(reply, Update) for reply in replies)} updates")
            except QuorumNotReached as error:
                said.append(str(error).split(". ")[0])
        toggled = list(fed.broadcast("train", MODEL, round=2, config={"raises_at": ""}))
        assert not [reply for reply in toggled if isinstance(reply, SiteFailure)]
        return said

    assert run_in(controller, quorum=0.6, config={"raises_at": ["b"]}) == [
        "4 updates",
        "4 updates",
        "round 1, train: 4 of 5 sites answered, the quorum is 5",
    ]


def test_updates_of_other_shapes_are_taken_where_the_flow_says_so(
    run_in: Callable[..., object],
) -> None:
    def controller(fed: Federation) -> list[int]:
        refused = list(fed.broadcast("train", MODEL, round=1, quorum=0))
        taken = list(fed.broadcast("train", MODEL, round=2, same_tensors=False))
        return [
            sum(isinstance(reply, SiteFailure) for reply in replies) for replies in (refused, taken)
        ]

    assert run_in(controller, config={"wrong_shape_at": ["a", "c"]}) == [2, 0]


@pytest.mark.parametrize(
    ("controller", "error", "says"),
    [
        (lambda fed: fed.broadcast("train", sites=["z"]), ConfigurationError, "sites z, which do"),
        (lambda fed: fed.broadcast("sing"), ExecutorNotFound, "does no site task 'sing' at a, b"),
        (lambda fed: fed.broadcast("train", sites=[]), QuorumNotReached, "no site is connected"),
        (
            lambda fed: initial_model(fed),
            QuorumNotReached,
            "no site gave a model to begin with: a: MemoryError: too small; b: MemoryError",
        ),
    ],
)
def test_a_call_that_cannot_be_says_what_to_do(
    controller: Callable[[Federation], object],
    error: type[Exception],
    says: str,
    run_in: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "initializes_not.py").write_text(
        "from prefect_federated import Update, executor\n"
        "@executor\n"
        "def initialize(model, site):\n"
        "    raise MemoryError('too small')\n"
        "@executor\n"
        "def train(model, site):\n"
        "    return Update(model)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=says):
        run_in(controller, executor="initializes_not")


def test_an_executor_without_evaluate_is_not_asked_to(run_in: Callable[..., object]) -> None:
    assert run_in(lambda fed: evaluate(fed, MODEL), executor=f"{EXECUTOR}:train") == {}
    evaluated = run_in(lambda fed: evaluate(fed, MODEL))
    assert isinstance(evaluated, dict)
    assert evaluated.keys() == {"loss"}


def test_more_sites_than_there_are_end_the_job(run_in: Callable[..., object]) -> None:
    with pytest.raises(NotEnoughSites, match="asks for 6 sites; the simulation has 5"):
        run_in(lambda fed: None, min_sites=6)
    assert issubclass(NotEnoughSites, JobError)
