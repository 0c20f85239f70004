"""Broadcast, send and relay, waited for and not, on virtual sites."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError, QuorumNotReached
from prefect_federated.messages import JsonValue, SiteFailure, Update
from prefect_federated.tasks.choosing import labelled, sample
from prefect_federated.tasks.federation import Federation, first_completed
from prefect_federated.tasks.models import evaluate, initial_model
from prefect_federated.tasks.replies import Future
from tests.tasks.counting_executor import gates
from tests.tasks.in_a_flow import run_in_flow

COUNTING = "tests.tasks.counting_executor"
MODEL = {"sum": np.zeros(1)}

pytestmark = pytest.mark.usefixtures("prefect_api")
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a function of a federation inside a flow, with the executor that counts."""
    for gate in gates.values():
        gate.clear()

    def run(controller: Callable[[Federation], Any], **more: Any) -> Any:
        return run_in_flow(controller, tmp_path, **{"executor": COUNTING, **more})

    yield run
    for gate in gates.values():
        gate.set()


def asked(fed: Federation, **call: Any) -> set[str]:
    return {reply.site for reply in fed.broadcast("train", MODEL, **call)}


def test_sites_are_chosen_by_name_by_label_and_at_random(run: Run) -> None:
    def controller(fed: Federation) -> None:
        assert asked(fed) == set("abcde")
        assert asked(fed, sites=["d", "a"]) == {"a", "d"}
        assert asked(fed, sites=labelled(region="eu")) == {"a", "b", "c"}
        drawn = [asked(fed, round=number, sites=sample(2)) for number in (1, 2, 3, 4, 5, 6)]
        assert {len(sites) for sites in drawn} == {2}
        assert len({frozenset(sites) for sites in drawn}) > 1
        assert asked(fed, round=1, sites=sample(2)) == drawn[0]
        assert asked(fed, sites=sample(1.0, of=labelled(region="us"))) == {"d", "e"}
        with pytest.raises(QuorumNotReached, match="none is chosen of those that are connected"):
            asked(fed, sites=labelled(region="asia"))

    regions = {site: {"region": "eu" if site in "abc" else "us"} for site in "abcde"}
    run(controller, labels=regions)


def test_a_sample_may_be_drawn_by_the_weights_of_the_newest_updates(run: Run) -> None:
    def controller(fed: Federation) -> list[str]:
        asked(fed)  # the sites' weights are 1 to 5, from now on
        rule = sample(1, weighted_by="examples")
        return [asked(fed, round=number, sites=rule).pop() for number in range(1, 41)]

    drawn = run(controller)
    assert sum("abcde".index(site) + 1 for site in drawn) / 40 > 3.2  # 3 if all were alike


def test_send_asks_the_named_sites_and_all_of_them_must_answer(run: Run) -> None:
    def controller(fed: Federation) -> None:
        assert [reply.site for reply in fed.send("train", MODEL, sites="c")] == ["c"]
        assert {r.site for r in fed.send("train", MODEL, sites=["e", "a"])} == {"a", "e"}
        with pytest.raises(QuorumNotReached, match=r"1 of 2 sites .* Missing: b: OSError: no disk"):
            list(fed.send("train", MODEL, sites=["a", "b"]))
        (failure,) = fed.send("train", MODEL, sites="b", quorum=0)
        assert failure == SiteFailure("b", "OSError: no disk")
        with pytest.raises(ConfigurationError, match="asked of the sites z"):
            fed.send("train", MODEL, sites="z")

    run(controller, config={"fails": ["b"]})


def test_a_relay_hands_each_reply_to_the_next_site(run: Run) -> None:
    def controller(fed: Federation) -> list[str]:
        relay = fed.relay("train", MODEL, round=1)
        sums = {r.site: float(r.tensors["sum"][0]) for r in relay if isinstance(r, Update)}
        assert sums == {"a": 1, "b": 3, "c": 6, "d": 10, "e": 15}
        assert float(relay.model["sum"][0]) == 15
        (row,) = fed.reporter.history
        assert (row["round"], row["sites"]) == (1, "5/5")
        assert row["sum"] == pytest.approx((1 * 1 + 2 * 3 + 3 * 6 + 4 * 10 + 5 * 15) / 15)

        given = fed.relay("train", MODEL, order=["e", "b", "a"])
        assert [reply.site for reply in given] == ["e", "b", "a"]
        two = fed.relay("train", MODEL, sites=["c", "b"])
        assert [reply.site for reply in two] == ["c", "b"]
        orders = [
            tuple(r.site for r in fed.relay("train", MODEL, order="shuffled", round=number))
            for number in (2, 3, 4, 5)
        ]
        assert {frozenset(order) for order in orders} == {frozenset("abcde")}
        assert len(set(orders)) > 1
        again = fed.relay("train", MODEL, order="shuffled", round=2)
        assert tuple(reply.site for reply in again) == orders[0]
        with pytest.raises(RuntimeError, match="read once"):
            list(again)
        return [str(row["kind"]) for row in fed.reporter.history]

    assert run(controller) == ["train"] * 8


def test_what_a_relay_does_without_a_site_is_an_argument(run: Run) -> None:
    def sites_of(fed: Federation, **terms: Any) -> list[str]:
        return [
            reply.site.upper() if isinstance(reply, SiteFailure) else reply.site
            for reply in fed.relay("train", MODEL, quorum=2, **terms)
        ]

    def controller(fed: Federation) -> None:
        assert sites_of(fed, on_missing="later") == ["a", "c", "e", "B", "d"]
        assert sites_of(fed, on_missing="skip") == ["a", "B", "c", "d", "e"]
        with pytest.raises(QuorumNotReached, match=r"ended at site 'b', .*: OSError: no disk. To"):
            sites_of(fed, on_missing="fail")
        with pytest.raises(QuorumNotReached, match=r"4 of 5 .* quorum is 5. Missing: b: OSError"):
            list(fed.relay("train", MODEL, quorum=1.0))

    run(controller, max_failures=None, config={"fails": ["b"], "fails_once": ["d"]})


def test_a_relay_that_nobody_waits_for_goes_on_by_itself(run: Run) -> None:
    def controller(fed: Federation) -> None:
        future = fed.relay.submit("train", MODEL, order=["a", "c", "e"], round=1)
        assert not future.wait(timeout_s=0)
        gates["c"].set()
        assert future.wait(timeout_s=20)
        assert future.is_done
        relayed = future.result()
        assert float(relayed.model["sum"][0]) == 9
        assert [reply.site for reply in relayed.replies] == ["a", "c", "e"]
        assert all(not r.tensors for r in relayed.replies if isinstance(r, Update))

    run(controller, config={"waits": ["c"]})


def test_a_cancelled_relay_asks_no_further_site(run: Run) -> None:
    def controller(fed: Federation) -> None:
        future = fed.relay.submit("train", MODEL, order=["a", "c", "e"], round=1)
        future.cancel()
        with pytest.raises(QuorumNotReached, match=r"the relay was cancelled at site '[ac]'"):
            future.result()
        gates["c"].set()
        assert asked(fed, sites=["c"]) == {"c"}

    run(controller, config={"waits": ["c"]})


def test_a_flow_may_leave_a_relay_behind(run: Run) -> None:
    def controller(fed: Federation) -> None:
        fed.relay.submit("train", MODEL, order=["a", "c", "e"])
        gates["c"].set()

    run(controller, config={"waits": ["c"]})


def test_the_first_completed_of_several_calls_is_told(run: Run) -> None:
    def controller(fed: Federation) -> None:
        slow = fed.send.submit("train", MODEL, sites="c")
        fast = fed.send.submit("train", MODEL, sites="a")
        done, pending = first_completed([slow, fast], timeout_s=20)
        assert (done, pending) == ([fast], [slow])
        assert first_completed([slow], timeout_s=0.01) == ([], [slow])
        assert first_completed([]) == ([], [])
        gates["c"].set()
        assert first_completed([slow, fast], timeout_s=20)[0]
        assert slow.wait(timeout_s=20)
        assert slow.is_done
        assert [reply.site for reply in slow.result()] == ["c"]
        relay = fed.relay.submit("train", MODEL, order=["a", "b"])
        call = fed.send.submit("train", MODEL, sites="e")
        futures: list[Future] = [relay, call]
        assert first_completed(futures, timeout_s=20)[0]
        assert [len(future.result()) for future in (fast, call)] == [1, 1]
        assert len(relay.result().replies) == 2

    run(controller, config={"waits": ["c"]})


def test_a_cancelled_call_ends_at_its_sites_and_its_result_says_so(run: Run) -> None:
    def controller(fed: Federation) -> None:
        future = fed.broadcast.submit("train", MODEL, sites=["a", "c"], round=1)
        future.cancel()
        assert future.is_done
        with pytest.raises(QuorumNotReached, match="the job's flow cancelled the call"):
            future.result()
        gates["c"].set()
        assert asked(fed, round=2) == set("abcde")

    run(controller, config={"waits": ["c"]})


def test_at_most_so_many_sites_work_at_the_same_time(run: Run) -> None:
    def controller(fed: Federation) -> None:
        future = fed.broadcast.submit("train", MODEL, sites=["c", "a"], in_flight=1, round=1)
        assert not future.wait(timeout_s=0.2)  # a is not asked before c has answered
        assert [report.seconds for report in future.replies.call.reports.values()] == [0, 0]
        gates["c"].set()
        assert [reply.site for reply in future.result()] == ["c", "a"]

    run(controller, config={"waits": ["c"]})


def test_after_the_quorum_a_call_waits_for_its_grace_and_a_late_update_counts_in_the_next(
    run: Run,
) -> None:
    def controller(fed: Federation) -> None:
        first = list(fed.broadcast("train", MODEL, round=1))
        (missing,) = [reply for reply in first if isinstance(reply, SiteFailure)]
        assert missing.site == "c"
        assert "after the quorum was there" in missing.reason
        gates["c"].set()
        second = list(fed.broadcast("train", MODEL, round=2, grace_s=20))
        (late,) = [reply for reply in second if reply.site == "c"]
        assert isinstance(late, Update)
        assert (late.staleness, late.weight, late.metrics["round"]) == (1, 3 * 0.25, 1)
        assert fed.reporter.history[-1]["late"] == 1

    run(controller, quorum=0.8, grace_s=0.3, late_weight=0.25, config={"waits": ["c"]})


def test_a_site_that_fails_too_often_is_left_out_and_taken_back(run: Run) -> None:
    def controller(fed: Federation) -> list[object]:
        for number in range(1, 9):
            config: dict[str, JsonValue] = {"fails": ["b"]} if number < 4 else {}
            list(fed.broadcast("train", MODEL, round=number, config=config))
        return [row.get("left_out") for row in fed.reporter.history]

    left_out = run(controller, max_failures=2)
    assert left_out[:3] == [None, "b", "b"]
    assert left_out[-1] is None


def test_a_relay_asks_a_site_that_was_left_out_last_and_does_not_count_it(run: Run) -> None:
    def controller(fed: Federation) -> None:
        for number in range(1, 4):
            failing: dict[str, JsonValue] = {"fails": ["b"]}
            list(fed.relay("train", MODEL, round=number, config=failing))
        said = []
        for number, fails in ((4, "b"), (5, ""), (6, "")):
            config: dict[str, JsonValue] = {"fails": fails}
            relay = fed.relay("train", MODEL, round=number, config=config, quorum=1.0)
            order = "".join(reply.site for reply in relay)
            said.append((order, fed.reporter.history[-1]["sites"], float(relay.model["sum"][0])))
        assert said == [("acde", "4/4", 13), ("acdeb", "5/5", 15), ("abcde", "5/5", 15)]

    run(controller, max_failures=2, late_weight=0.5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"on_missing": "wait"}, "on_missing='wait'; it is one of skip, later, fail"),
        ({"order": "random"}, "order='random'; it is 'given', 'shuffled', or a list"),
        ({"timeout_s": 0}, "timeout_s=0; it is seconds above 0"),
        ({"quorum": True}, "quorum=True; it is a share"),
    ],
)
def test_a_relay_that_cannot_be_asks_no_site(call: dict[str, Any], says: str, run: Run) -> None:
    def controller(fed: Federation) -> None:
        with pytest.raises(ConfigurationError, match=says):
            fed.relay("train", MODEL, **call)
        assert fed.hub.round == 0

    run(controller)


def test_only_training_calls_take_late_updates(run: Run) -> None:
    """What is evaluated is this model, and what is relayed is the last site's."""

    def controller(fed: Federation) -> None:
        calls: list[tuple[str, float]] = []
        ask = fed.hub.call

        def noted(kind: str, message: Any, sites: Any, terms: Any, trials: Any = ()) -> Any:
            calls.append((kind, terms.late))
            return ask(kind, message, sites, terms, trials)

        fed.hub.call = noted  # type: ignore[method-assign]
        list(fed.broadcast("train", MODEL, round=1))
        list(fed.relay("train", MODEL, round=1, order=["a"]))
        evaluate(fed, MODEL)
        initial_model(fed)
        assert calls == [("train", 0.5), ("train", 0), ("evaluate", 0), ("initialize", 0)]

    run(controller, late_weight=0.5)
