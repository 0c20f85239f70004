"""A forwarder for code that is not asynchronous: scripts, notebooks, tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.kits import StartupKit


@contextmanager
def connected(kit: StartupKit) -> Iterator[dict[str, str]]:
    """Opens a forwarder on a thread of its own; gives the variables that make Prefect use it.

    Raises:
        ConnectionFailed: the server cannot be reached.
        KitError: the server does not accept the kit.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="forwarder", daemon=True)
    thread.start()
    forwarder = Forwarder(kit)

    async def open_and_check() -> None:
        await forwarder.__aenter__()
        await forwarder.check()

    try:
        asyncio.run_coroutine_threadsafe(open_and_check(), loop).result()
        yield forwarder.environment()
    finally:
        asyncio.run_coroutine_threadsafe(forwarder.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
