"""One Prefect task run for each (round, site): what a person reads in the UI.

The task runs observe a call; they do not carry it. So they cost a few milliseconds, and a site that
fails shows as a Failed task run with its reason.
"""

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from prefect_federated.transport.calls import Call


@task(cache_policy=NO_CACHE, persist_result=False)
def site_task(site: str, call: Call) -> State[None]:
    """Waits for one site's answer to one call; Failed, with the reason, if there is none."""
    report = call.wait_site(site)
    if report.reason is not None:
        return Failed(message=f"{site}: {report.reason}")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in (report.metrics or {}).items())
    return Completed(message=f"{site}: {report.seconds:.2f} s, {metrics}".removesuffix(", "))


def observe(call: Call) -> list[PrefectFuture[State[None]]]:
    """Starts a Prefect task run for each site of a call; each ends when its site has answered."""
    when = f"round {call.terms.round} · " if call.terms.round else ""
    return [
        site_task.with_options(name=call.kind, task_run_name=f"{when}{call.kind} · {site}").submit(
            site, call
        )
        for site in call.sites
    ]


class _OncePerRound(logging.Filter):
    """Drops what a site's Prefect task run says of a success, and what it says twice of a failure.

    The round has a line of its own, with the reasons of failures.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said = ("Finished in state Completed", "Task run failed with state")
        is_ours = " · " in str(getattr(record, "task_run_name", ""))
        return not (is_ours and record.getMessage().startswith(said))


logging.getLogger("prefect.task_runs").addFilter(_OncePerRound())
