"""How a call's sites are divided among Prefect task runs, and what these say."""

import threading

from prefect import flow

from prefect_federated.messages import Message
from prefect_federated.tasks.site_tasks import AT_ONCE, SITES_SHOWN_ALONE, observe
from prefect_federated.transport.calls import CallTerms
from prefect_federated.transport.hub import Hub


def told(prefect_api: str, count: int, failing: int) -> list[str]:
    """Returns what the task runs of a call say after `failing` of `count` sites have failed."""
    hub = Hub("job-1", 1, [f"site-{number}" for number in range(count)])

    @flow
    def asks() -> list[str]:
        call = hub.call("train", Message({}), hub.sites, CallTerms(round=3, quorum=0))
        futures = observe(call)
        for number in range(failing):
            hub.fail(f"site-{number}", call.id, "no rows")
        call.cancel("nobody waits")
        for future in futures:
            future.wait()
        return [str(future.state.message) for future in futures]

    return asks()


def test_few_sites_have_a_task_run_each(prefect_api: str) -> None:
    said = told(prefect_api, 3, failing=1)
    assert said == ["site-0: no rows", "site-1: nobody waits", "site-2: nobody waits"]


def test_many_sites_share_a_few_task_runs_which_name_the_first_failures(prefect_api: str) -> None:
    count = SITES_SHOWN_ALONE * 10
    said = told(prefect_api, count, failing=5)
    assert len(said) <= 8
    first = "site-0: no rows; site-1: no rows; site-2: no rows; and"
    assert said[0].startswith(f"{count // len(said)} of {count // len(said)} sites failed: {first}")


def test_calls_to_hundreds_of_sites_one_by_one_do_not_hold_a_thread_each(prefect_api: str) -> None:
    hub = Hub("job-1", 1, [f"site-{number}" for number in range(AT_ONCE + 40)])

    @flow
    def asks() -> list[int]:
        before = threading.active_count()
        calls = [hub.call("train", Message({}), [s], CallTerms(quorum=0)) for s in hub.sites]
        watching = [future for call in calls for future in observe(call)]
        more = threading.active_count() - before
        for call in calls:
            call.cancel("nobody waits")
        for future in watching:
            future.wait()
        last = hub.call("train", Message({}), hub.sites[:1], CallTerms(quorum=0))
        again = observe(last)  # there is room once more
        last.cancel("nobody waits")
        again[0].wait()
        return [len(watching), more, len(again)]

    watching, more, again = asks()
    assert watching == AT_ONCE
    assert more < AT_ONCE + 20
    assert again == 1
