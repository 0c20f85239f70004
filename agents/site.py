"""The site agent: the forwarder and the site's Prefect worker."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect_federated.agents.forwarder import Forwarder
from prefect_federated.agents.processes import Child, agent_environment, until_signal
from prefect_federated.agents.server import state_folder
from prefect_federated.errors import ConfigurationError
from prefect_federated.kits import Role, StartupKit, load_kit

log = logging.getLogger("prefect_federated.site")


async def serve(
    folder: Path,
    data: Path | None = None,
    state: Path | None = None,
    code: Sequence[Path] = (),
    labels: Sequence[str] = (),
) -> None:
    """Runs a site until SIGTERM or SIGINT; waits for a server that is not there yet.

    Args:
        folder: The site's startup kit.
        data: Folder of the site's own data, handed to executors as `site.data`; the state folder's
            `data` if None.
        state: Folder for what the site keeps of jobs; see `state_folder`.
        code: Folders to import executors from, beside what is installed.
        labels: What the site says of itself, each as "name=value".

    Raises:
        KitError: the kit is not a site's, or the server does not accept it.
        ConfigurationError: a folder does not exist, or a label has no value.
    """
    kit = load_kit(folder, role=Role.SITE)
    state = (state or state_folder(kit)).resolve()
    for path in [*code, *([data] if data is not None else [])]:
        if not path.is_dir():
            raise ConfigurationError(f"{path} is not a folder; name one that exists.")
    data = (data or state / "data").resolve()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    name, said = kit.identity.name, _labels(labels)
    async with Forwarder(kit) as forwarder:
        stop = asyncio.create_task(until_signal())
        reach = asyncio.create_task(forwarder.wait_until_reachable())
        await asyncio.wait([stop, reach], return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            reach.cancel()
            return
        log.info("site %s: joined federation %s at %s", name, kit.federation, reach.result())
        environment = {**_environment(kit, data, state, code, said), **forwarder.environment()}
        command = [sys.executable, "-m", "prefect_federated.agents.site_worker", name]
        worker = asyncio.create_task(Child("worker", command, environment).run())
        await asyncio.wait([stop, worker], return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        log.info("site %s: stopped", name)


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or not value:
            raise ConfigurationError(
                f"--label {pair!r} is not name=value; write it like region=eu."
            )
        labels[name] = value
    return labels


def _environment(
    kit: StartupKit,
    data: Path,
    state: Path,
    code: Sequence[Path],
    labels: Mapping[str, str],
) -> dict[str, str]:
    """Returns the environment of the site's processes; what an operator has set stays."""
    paths = [str(folder.resolve()) for folder in code]
    inherited = os.environ.get("PYTHONPATH")
    return {
        "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "5",
        **agent_environment(state),
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
        "PREFECT_FEDERATED_KIT": str(kit.folder.resolve()),
        "PREFECT_FEDERATED_DATA": str(data),
        "PREFECT_FEDERATED_STATE": str(state),
        **({"PREFECT_FEDERATED_LABELS": json.dumps(labels)} if labels else {}),
    }
