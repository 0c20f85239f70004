"""The server agent: gateway, Prefect's API under mutual TLS, and the process that runs jobs."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import httpx

from prefect_federated.agents.addresses import Address, bind, free_port
from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.agents.processes import Child, agent_environment, until_signal
from prefect_federated.kits import Role, ServerAddress, StartupKit, load_kit
from prefect_federated.tracking import check_installed

_START_S = 120.0

log = logging.getLogger("prefect_federated.server")


async def serve(
    folder: Path,
    state: Path | None = None,
    listen: str | None = None,
    tensorboard: Path | None = None,
) -> None:
    """Runs a federation's server until SIGTERM or SIGINT; its children end with it.

    Args:
        folder: The server's startup kit.
        state: Folder for the database, results and snapshots; see `state_folder`.
        listen: Address of the gateway, "host:port"; the kit's port on all addresses if None (on
            loopback only, where the kit's address is loopback).
        tensorboard: Folder for TensorBoard's event files; what the setting says if None.

    Raises:
        KitError: the kit is not a server's, or something is wrong with it.
        ConfigurationError: `tensorboard` is given, and TensorBoard is not installed.
        FederatedError: a part cannot start: the port is taken, the database cannot be reached.
    """
    kit = load_kit(folder, role=Role.SERVER)
    if tensorboard is not None:
        check_installed("tensorboard", "--tensorboard")
    state = (state or state_folder(kit)).resolve()  # jobs run in folders of their own
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    gateway = _gateway_address(kit, listen)
    api = Address("127.0.0.1", free_port())
    environment = _environment(kit, state)
    if tensorboard is not None:
        environment["PREFECT_FEDERATED_TENSORBOARD"] = str(tensorboard.resolve())
    inside = replace(kit, servers=(ServerAddress("api", api.host, api.port),))
    async with Forwarder(inside) as forwarder:
        own = {
            **environment,
            **forwarder.environment(),
            "PREFECT_UI_URL": f"https://{kit.own_address}",
        }
        module = [sys.executable, "-m"]
        kit_argument = ["--kit", str(kit.folder)]
        api_child = Child(
            "API",
            [*module, "prefect_federated.agents.api", *kit_argument, "--listen", str(api)],
            environment,
        )
        gateway_child = Child(
            "gateway",
            [
                *module, "prefect_federated.agents.gateway", *kit_argument,
                "--listen", str(gateway), "--api", str(api),
            ],
            environment,
        )  # fmt: skip
        controller_child = Child(
            "controller", [*module, "prefect_federated.agents.controller"], own
        )
        stop = asyncio.create_task(until_signal())
        running: list[asyncio.Task[None]] = []
        try:
            bind(gateway).close()  # a port that is taken is said at once
            running.append(asyncio.create_task(api_child.run()))
            await _first(stop, running, _listening(api))
            await _first(stop, running, forwarder.wait_until_reachable(_START_S))
            running.append(asyncio.create_task(gateway_child.run()))
            running.append(asyncio.create_task(controller_child.run()))
            await _first(stop, running, _ready(forwarder.url))
            if not stop.done():
                log.info("federation %s: server %s is ready", kit.federation, kit.identity.name)
                log.info("UI and API: https://%s (with a user's certificate)", kit.own_address)
            await _first(stop, running, asyncio.Event().wait())
        finally:
            stop.cancel()
            for task in reversed(running):  # the API last: the others have something to report
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            log.info("server %s stopped", kit.identity.name)


def state_folder(kit: StartupKit) -> Path:
    """Returns the folder where a participant keeps its state, unless told otherwise."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "prefect-federated" / kit.federation / kit.identity.name


async def _first(
    stop: asyncio.Task[None], running: list[asyncio.Task[None]], work: Awaitable[object]
) -> None:
    """Waits for some work, or for the signal to stop; a part that fails raises its error."""
    doing = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([stop, doing, *running], return_when=asyncio.FIRST_COMPLETED)
    if doing not in done:
        doing.cancel()
    for task in done:
        task.result()


async def _listening(api: Address) -> None:
    """Waits until the API takes connections; it has a database to set up at its first start."""
    while True:
        try:
            _, writer = await asyncio.open_connection(api.host, api.port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


async def _ready(url: str) -> None:
    """Waits until the built-in deployments are registered and the worker polls."""
    async with httpx.AsyncClient(base_url=f"{url}/", trust_env=False) as api:
        while True:
            try:
                deployment = await api.get("deployments/name/fedavg/default")
                pool = await api.get("work_pools/federation")
                if deployment.is_success and pool.json().get("status") == "READY":
                    return
            except httpx.HTTPError as error:
                log.debug("not ready: %s", error)
            await asyncio.sleep(0.2)


def _gateway_address(kit: StartupKit, listen: str | None) -> Address:
    if listen is not None:
        return Address.parse(listen)
    own = kit.own_address
    is_loopback = own.host in ("localhost", "::1") or own.host.startswith("127.")
    return Address(own.host if is_loopback else "0.0.0.0", own.port)  # noqa: S104 mutual TLS only


def _environment(kit: StartupKit, state: Path) -> dict[str, str]:
    """Returns the environment of the server's processes; what an operator has set stays."""
    database = f"sqlite+aiosqlite:///{state / 'prefect.db'}"
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "results"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # never pickle
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": os.environ.get(
            "PREFECT_API_DATABASE_CONNECTION_URL", database
        ),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    return {**defaults, **agent_environment(state), "PREFECT_FEDERATED_KIT": str(kit.folder)}
