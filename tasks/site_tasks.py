"""One Prefect task run for each (round, site): what a person reads in the UI.

The task runs observe a call; they do not carry it. So they cost a few milliseconds, and a site that
fails shows as a Failed task run with its reason.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed, State

from prefect_federated.transport.calls import Call


@task(
    task_run_name="round {round} · {kind} · {site}",
    cache_policy=NO_CACHE,
    persist_result=False,
    log_prints=False,
)
def site_task(kind: str, round: int, site: str, call: Call) -> State[None]:
    """Waits for one site's answer to one call; Failed, with the reason, if there is none."""
    report = call.wait_site(site)
    if report.reason is not None:
        return Failed(message=f"{site}: {report.reason}")
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in (report.metrics or {}).items())
    return Completed(message=f"{site}: {report.seconds:.2f} s, {metrics}".removesuffix(", "))


def observe(call: Call) -> list[PrefectFuture[object]]:
    """Starts a Prefect task run for each site of a call; each ends when its site has answered."""
    named = site_task.with_options(name=call.kind)
    return [named.submit(call.kind, call.terms.round, site, call) for site in call.sites]
