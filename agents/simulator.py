"""A job on virtual sites: the same flow, tasks, filters and executors; another transport.

Prefect's records go to the server that PREFECT_API_URL names, or to a temporary one.
"""

import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import Flow
from prefect.exceptions import ParameterBindError, ParameterTypeError
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_RESULTS_DEFAULT_SERIALIZER,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)
from prefect.utilities.callables import get_call_parameters

from prefect_federated.agents import temporary_server
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import load_executor
from prefect_federated.messages import JsonValue, Tensor
from prefect_federated.tasks.dask_runner import check_dask
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.tasks.snapshots import ModelRef, read_model
from prefect_federated.tasks.tabular import FittedRef
from prefect_federated.tracking import check_installed
from prefect_federated.transport.inproc import Labels, Watcher
from prefect_federated.transport.signals import Moment

_BUILT_IN = "prefect_federated.flows."


@dataclass(frozen=True)
class SimulationResult:
    """What a simulated job gave.

    Args:
        model: The global model, name -> ndarray.
        metrics: The job's table: one row a call to the sites.
        path: The model's `.safetensors` file; the folder of a fitted model (`load_fitted`).
        returned: What the flow returned.
    """

    model: Mapping[str, Tensor]
    metrics: Sequence[Mapping[str, JsonValue]]
    path: Path
    returned: object


def simulate(
    flow: "str | Flow[..., Any]" = "fedavg",
    *,
    sites: int | Sequence[str] | None = None,
    threads: int | None = None,
    processes: int | None = None,
    runner: Literal["threads", "processes", "dask"] | None = None,
    dask_address: str | None = None,
    data: Path | str | None = None,
    code: Sequence[Path | str] = (),
    output: Path | str | None = None,
    parameters: Mapping[str, JsonValue] | None = None,
    labels: Labels | None = None,
    watcher: Callable[[int | None], Watcher] | None = None,
    listener: Callable[[Moment], None] | None = None,
    tensorboard: Path | str | None = None,
) -> SimulationResult:
    """Runs a job on virtual sites and returns its model and metrics.

    Args:
        flow: A built-in job's name, "module:flow", or a Prefect flow.
        sites: Number of virtual sites (named site-1, site-2, ...), or their names; if None, the
            sub-folders of `data`, or else 2.
        threads: Site tasks that run at the same time on threads; the number of processors if None.
        processes: Worker processes that run the site tasks instead; with `runner="dask"`, those of
            a Dask cluster on this machine.
        runner: Where site tasks run: "threads" (default), "processes" (default if `processes` is
            given) or "dask", where each batch of a round's site tasks is a Prefect task run on a
            Dask cluster.
        dask_address: Address of a Dask scheduler, `tcp://host:port`; the folders of `data` and
            `output` must then be the same for all its workers.
        data: Folder with one sub-folder of data a site.
        code: Folders to import executors from, beside what is installed.
        output: Folder for the model and snapshots; a new temporary one if None.
        parameters: The flow's parameters.
        labels: Labels of sites, by site.
        watcher: Given the job's rounds, makes what is told of the sites' progress.
        listener: Is told of what happens to the sites and what they say while they work; must not
            block.
        tensorboard: Folder for TensorBoard's event files (needs prefect-federated[tensorboard]);
            what PREFECT_FEDERATED_TENSORBOARD says if None.

    Raises:
        ConfigurationError: no such flow, parameters that do not fit it, or a runner that cannot be.
        ExecutorNotFound: the executor does not import.
        ConnectionFailed: Prefect's temporary server did not start.
        JobError: the job could not go on.

    `examples/hello_numpy/hello_numpy.py` is a whole example.
    """
    for folder in code:
        if not Path(folder).is_dir():
            raise ConfigurationError(f"--code {folder} is not a folder.")
        sys.path.insert(0, str(Path(folder).resolve()))
    where = _runner(runner, processes, dask_address)
    if tensorboard is not None:
        check_installed("tensorboard", "--tensorboard")
    target = Path(output or tempfile.mkdtemp(prefix="prefect-federated-"))
    with _settings(target):
        server = temporary_server.start_if_needed()  # it starts while the flow is imported
        found = load_flow(flow) if isinstance(flow, str) else flow
        simulation = Simulation(
            sites=_site_names(sites, Path(data) if data is not None else None),
            threads=threads or os.cpu_count() or 1,
            data=Path(data or target / "data"),
            state=target / "state",
            runner=where,
            processes=processes,
            dask_address=dask_address,
            labels=labels or {},
            watcher=watcher,
            listener=listener,
            tensorboard=None if tensorboard is None else Path(tensorboard),
        )
        fitting = _fitting(found, parameters or {})
        if isinstance(path := fitting.get("executor", _default(found, "executor")), str):
            load_executor(path)  # its imports take seconds, too
        _import_ahead(found)
        with temporary_server.reached(server), simulating(simulation):
            returned = found.with_options(retries=0)(**fitting)
    if isinstance(returned, FittedRef):
        return SimulationResult({}, returned.history, Path(returned.path), returned)
    if not isinstance(returned, ModelRef):
        return SimulationResult({}, [], target, returned)
    return SimulationResult(
        read_model(Path(returned.path)), returned.history, Path(returned.path), returned
    )


def _runner(
    runner: Literal["threads", "processes", "dask"] | None,
    processes: int | None,
    dask_address: str | None,
) -> Literal["threads", "processes", "dask"]:
    if processes is not None and processes < 1:
        raise ConfigurationError(f"a simulation needs at least 1 process, not {processes}.")
    if dask_address is not None and runner != "dask":
        raise ConfigurationError("--dask-address is for --runner dask.")
    if processes is not None and (runner == "threads" or dask_address is not None):
        raise ConfigurationError(
            "--processes makes worker processes on this machine; leave it out with --runner "
            "threads and with --dask-address."
        )
    if runner == "dask":
        check_dask()
    return runner or ("processes" if processes is not None else "threads")


def _import_ahead(flow: "Flow[..., Any]") -> None:
    """Imports what the flow's job will import; where that fails, the job says what to install."""
    for module in getattr(flow.fn, "imports", ()):
        with suppress(ImportError):
            importlib.import_module(module)


def load_flow(name: str) -> "Flow[..., Any]":
    """Returns a built-in flow by its name, or the one at "module:flow".

    Raises:
        ConfigurationError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        attribute = name.replace("-", "_")  # as its deployment is called
        module_name = f"{_BUILT_IN}{attribute}"
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"there is no flow {name!r} ({error}). Name a built-in job, such as 'fedavg', or your "
            "own as 'module:flow'."
        ) from error
    if not isinstance(found, Flow):
        raise ConfigurationError(f"{name!r} is not a Prefect flow.")
    return found


def _default(flow: "Flow[..., Any]", name: str) -> object:
    """Returns the default of a flow's parameter; None if there is none."""
    parameter = inspect.signature(flow.fn).parameters.get(name)
    return None if parameter is None else parameter.default


def _fitting(flow: "Flow[..., Any]", parameters: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Returns the flow's parameters as the flow's types have them.

    Raises:
        ConfigurationError: one is missing, unknown or out of its range.
    """
    known = inspect.signature(flow.fn).parameters
    if unknown := sorted(set(parameters) - set(known)):
        raise ConfigurationError(
            f"the flow {flow.name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known)}."
        )
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in parameters:
            raise ConfigurationError(f"the flow {flow.name!r} needs the parameter {name!r}.")
    try:
        bound = get_call_parameters(flow.fn, (), dict(parameters), apply_defaults=False)
        return flow.validate_parameters(bound)
    except (ParameterBindError, ParameterTypeError) as error:
        raise ConfigurationError(
            f"the parameters do not fit the flow {flow.name!r}: {error}"
        ) from error


def _site_names(sites: int | Sequence[str] | None, data: Path | None) -> tuple[str, ...]:
    folders = (
        sorted(entry.name for entry in data.iterdir() if entry.is_dir())
        if data is not None and data.is_dir()
        else []
    )
    if sites is None:
        return tuple(folders) or ("site-1", "site-2")
    if not isinstance(sites, int):
        return tuple(sites)
    if sites < 1:
        raise ConfigurationError(f"a simulation needs at least 1 site, not {sites}.")
    return (
        tuple(folders)
        if len(folders) == sites
        else tuple(f"site-{number}" for number in range(1, sites + 1))
    )


@contextmanager
def _settings(target: Path) -> Iterator[None]:
    with temporary_settings(
        {
            PREFECT_LOCAL_STORAGE_PATH: target.resolve(),
            PREFECT_RESULTS_DEFAULT_SERIALIZER: "json",  # Prefect's own default is pickle
            PREFECT_SERVER_ANALYTICS_ENABLED: False,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread would hold up the end of a job
        }
    ):
        yield
