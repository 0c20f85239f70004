"""Running a function of a federation inside a flow, on virtual sites."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow

from prefect_federated.tasks.federation import Federation, federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating

EXECUTOR = "tests.flows.trial_executors"
Result = TypeVar("Result")


def run_in_flow(
    controller: Callable[[Federation], Result],
    folder: Path,
    *,
    threads: int = 2,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    opening: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Result:
    """Runs `controller` on the virtual sites a, b, c, d and e and returns what it returns.

    Args:
        controller: Gets the federation.
        folder: For the sites' data and state.
        threads: Site tasks at the same time.
        labels: Site -> labels.
        opening: Further arguments of `federation(...)`.
        fields: The job's parameters.
    """

    @flow
    @takes(JobParameters)
    def trial(job: JobParameters) -> list[Result]:
        with federation(job, **(opening or {})) as fed:
            return [controller(fed)]

    simulation = Simulation(tuple("abcde"), threads, folder, folder, labels=labels or {})
    with simulating(simulation):
        returned: list[Result] = trial(**{"executor": EXECUTOR, **fields})
    return returned[0]
