"""The server's process that runs jobs: built-in deployments, the worker, and the overseer.

Run as `python -m prefect_federated.agents.controller`, with PREFECT_API_URL set.
"""

import asyncio
import contextlib
import logging
from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.types.entrypoint import EntrypointType

from prefect_federated.agents.overseer import CONTROLLER_POOL, Overseer
from prefect_federated.agents.processes import end_with_parent, log_to_stderr, until_signal
from prefect_federated.agents.worker import ControllerWorker, warm_starts
from prefect_federated.flows.cyclic import cyclic
from prefect_federated.flows.ditto import ditto
from prefect_federated.flows.fedavg import fedavg
from prefect_federated.flows.fedbuff import fedbuff
from prefect_federated.flows.fedopt import fedopt
from prefect_federated.flows.kmeans import kmeans
from prefect_federated.flows.linear import linear
from prefect_federated.flows.scaffold import scaffold
from prefect_federated.flows.sklearn import sklearn
from prefect_federated.flows.statistics import statistics
from prefect_federated.flows.svm import svm
from prefect_federated.flows.xgboost_bagging import xgboost_bagging
from prefect_federated.flows.xgboost_cyclic import xgboost_cyclic
from prefect_federated.flows.xgboost_histogram import xgboost_histogram
from prefect_federated.flows.xgboost_vertical import xgboost_vertical

BUILT_IN: "tuple[Flow[..., Any], ...]" = (
    fedavg,
    fedopt,
    scaffold,
    ditto,
    cyclic,
    fedbuff,
    statistics,
    xgboost_bagging,
    xgboost_cyclic,
    xgboost_histogram,
    xgboost_vertical,
    linear,
    kmeans,
    svm,
    sklearn,
)

log = logging.getLogger("prefect_federated.controller")


async def register() -> None:
    """Creates the pool of the controllers and the built-in deployments; again changes nothing."""
    async with get_client() as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(
                WorkPoolCreate(
                    name=CONTROLLER_POOL,
                    type=ControllerWorker.type,
                    base_job_template=ControllerWorker.get_default_base_job_template(),
                    description="Controllers of federated jobs; the server's own worker runs them.",
                )
            )
    for flow in BUILT_IN:
        deployment = await flow.ato_deployment(
            "default",
            work_pool_name=CONTROLLER_POOL,
            entrypoint_type=EntrypointType.MODULE_PATH,
            description=flow.description,
            tags=["built-in"],
        )
        await deployment.aapply()


async def main() -> None:
    """Registers, then runs worker and overseer until SIGTERM."""
    await register()
    worker = ControllerWorker(CONTROLLER_POOL, name="server", create_pool_if_not_found=False)
    async with get_client() as client, warm_starts():
        running = [
            asyncio.create_task(worker.start(printer=log.info)),
            asyncio.create_task(Overseer(client).run()),
        ]
        stop = asyncio.create_task(until_signal())
        done, _ = await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done - {stop}:
            task.result()


if __name__ == "__main__":
    end_with_parent()
    log_to_stderr()
    asyncio.run(main())
