"""Prefect task runs of a call's sites: what a person reads in the UI.

A call to a few sites has one task run a site; a call to many has a few task runs, each for a batch
of sites, so that Prefect's records do not grow with the sites. The task runs observe a call; they
do not carry it. So they cost a few milliseconds, and a site that fails shows with its reason. Where
a flow has many calls open, as one that asks hundreds of sites one by one, the calls beyond a number
have no task runs: what became of them is in the job's table only.
"""

import logging
import threading
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from prefect_federated.transport.calls import SiteReport
from prefect_federated.transport.waiting import Call

SITES_SHOWN_ALONE = 16
"""Sites of a call at most that have a Prefect task run each."""
BATCHES = 4
"""Prefect task runs of a call to more sites."""
AT_ONCE = 64
"""Prefect task runs at most that watch calls at the same time, each on a thread."""
_FAILURES_NAMED = 3

_free = threading.BoundedSemaphore(AT_ONCE)


@task(cache_policy=NO_CACHE, persist_result=False)
def site_task(sites: Sequence[str], call: Call) -> State[None]:
    """Waits for the answers of some sites to one call; Failed, with reasons, if one has none."""
    try:
        reports = [call.wait_site(site) for site in sites]
    finally:
        _free.release()
    failed = [report for report in reports if report.reason is not None]
    if len(reports) == 1:
        (report,) = reports
        return Failed(message=_failures(failed)) if failed else Completed(message=_line(report))
    if failed:
        more = len(failed) - _FAILURES_NAMED
        others = f"; and {more} more" if more > 0 else ""
        return Failed(
            message=f"{len(failed)} of {len(reports)} sites failed: {_failures(failed)}{others}"
        )
    slowest = max(report.seconds for report in reports)
    return Completed(message=f"{len(reports)} sites, the slowest {slowest:.2f} s")


def _line(report: SiteReport) -> str:
    metrics = "".join(f", {name} {value:.4g}" for name, value in (report.metrics or {}).items())
    return f"{report.site}: {report.seconds:.2f} s{metrics}"


def _failures(failed: Sequence[SiteReport]) -> str:
    return "; ".join(f"{report.site}: {report.reason}" for report in failed[:_FAILURES_NAMED])


def observe(call: Call) -> list[PrefectFuture[State[None]]]:
    """Starts Prefect task runs for the sites of a call; each ends when its sites have answered.

    None, while `AT_ONCE` watch other calls.
    """
    shares = _divided(call.sites)
    if not _take(len(shares)):
        return []
    when = f"round {call.terms.round} · " if call.terms.round else ""
    return [
        site_task.with_options(
            name=call.kind, task_run_name=f"{when}{call.kind} · {_named(sites)}"
        ).submit(sites, call)
        for sites in shares
    ]


def _take(count: int) -> bool:
    for taken in range(count):
        if not _free.acquire(blocking=False):
            for _ in range(taken):
                _free.release()
            return False
    return True


def _divided(sites: Sequence[str]) -> list[Sequence[str]]:
    if len(sites) <= SITES_SHOWN_ALONE:
        return [[site] for site in sites]
    return [
        sites[len(sites) * batch // BATCHES : len(sites) * (batch + 1) // BATCHES]
        for batch in range(BATCHES)
    ]


def _named(sites: Sequence[str]) -> str:
    return sites[0] if len(sites) == 1 else f"{len(sites)} sites, {sites[0]} to {sites[-1]}"


class _OncePerRound(logging.Filter):
    """Drops what a site's Prefect task run says of a success, and what it says twice of a failure.

    The round has a line of its own, with the reasons of failures.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said = ("Finished in state Completed", "Task run failed with state")
        is_ours = " · " in str(getattr(record, "task_run_name", ""))
        return not (is_ours and record.getMessage().startswith(said))


logging.getLogger("prefect.task_runs").addFilter(_OncePerRound())
