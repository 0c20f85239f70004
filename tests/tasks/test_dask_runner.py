"""Batches on a Dask cluster: what their sites say while they work."""

from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from prefect_federated.messages import Update
from prefect_federated.tasks.events import Hooks
from prefect_federated.tasks.federation import federation
from prefect_federated.tasks.parameters import JobParameters, takes
from prefect_federated.tasks.simulated import Simulation, simulating
from prefect_federated.transport.signals import Moment

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_what_sites_say_comes_with_their_batch(tmp_path: Path) -> None:
    said: list[Moment] = []
    hooks = Hooks(metrics_logged=[said.append])

    @flow
    @takes(JobParameters)
    def trial(job: JobParameters) -> int:
        with federation(job, hooks=hooks) as fed:
            replies = list(fed.broadcast("train", {"w": np.zeros(2)}, round=1))
            return sum(isinstance(reply, Update) for reply in replies)

    simulation = Simulation(("a", "b", "c"), 1, tmp_path, tmp_path, runner="dask", processes=1)
    with simulating(simulation):
        assert trial(executor="tests.transport.speaking_executor") == 3
    for site in "abc":
        assert [m.detail["step"] for m in said if m.site == site] == [1, 2, 3]
