"""The process of a site's worker. Run as `python -m prefect_federated.agents.site_worker SITE`."""

import asyncio
import logging
import sys

from prefect_federated.agents.processes import end_with_parent, log_to_stderr, until_signal
from prefect_federated.agents.worker import FederatedSiteWorker, warm_starts

log = logging.getLogger("prefect_federated.site")


async def main(site: str) -> None:
    """Runs the worker on the site's pool until SIGTERM."""
    worker = FederatedSiteWorker(site, name=site, create_pool_if_not_found=False)
    async with warm_starts():
        running = asyncio.create_task(worker.start(printer=log.info))
        stop = asyncio.create_task(until_signal())
        await asyncio.wait([stop, running], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    end_with_parent()
    log_to_stderr()
    asyncio.run(main(sys.argv[1]))
