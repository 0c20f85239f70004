"""Distributed XGBoost in a real federation: over mutual TLS, with a process killed."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import psutil
import pytest
import xgboost
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_federated.adapters.xgboost.parameters import resolve
from prefect_federated.tasks.tabular import FittedRef
from tests.adapters.xgboost.shards import own_collective
from tests.integration.running import CONTROLLER, SITE, Running, eventually

SITES = ["site-1", "site-2", "site-3"]
DATASETS = "privacy: {training: true}\ndatasets: {made: {csv: made.csv}}\n"
ROUNDS = 30


def rows_of(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(random.normal(size=(300 + 50 * seed, 4)), columns=list("abcd"))
    frame["y"] = (frame["a"] * frame["b"] + 0.3 * random.normal(size=len(frame)) > 0).astype(int)
    return frame


@pytest.fixture(scope="module")
def data(federation: Running) -> Iterator[dict[str, pd.DataFrame]]:
    """Gives each site its rows."""
    frames = {site: rows_of(seed) for seed, site in enumerate(SITES)}
    written: list[Path] = []
    for site, frame in frames.items():
        folder = federation.sandbox.state(site) / "data"
        folder.mkdir(exist_ok=True)
        written += [folder / "made.csv", folder / "datasets.yaml"]
        frame.to_csv(folder / "made.csv", index=False)
        (folder / "datasets.yaml").write_text(DATASETS)
    yield frames
    for file in written:
        file.unlink()


@pytest.fixture(scope="module")
def expected(data: dict[str, pd.DataFrame]) -> bytes:
    """XGBoost's own model over the same shards."""
    parameters = {**resolve("histogram", "binary", {}, max_depth=3), "nthread": 1}

    def shard(site: str) -> Any:
        frame = pd.read_csv(StringIO(data[site].to_csv(index=False)))
        return lambda: (xgboost.DMatrix(frame[list("abcd")], frame["y"], nthread=1), [])

    return own_collective(parameters, ROUNDS, [shard(site) for site in SITES])[0]


def begin(federation: Running, **parameters: object) -> UUID:
    federation.wait_until_idle()
    deployment = federation.client.read_deployment_by_name("xgboost-histogram/default")
    wanted: dict[str, object] = {
        "dataset": "made", "label": "y", "rounds": ROUNDS, "max_depth": 3, "test_share": 0,
        "compare_alone": False, "explain": False, "snapshot_every": 2, **parameters,
    }  # fmt: skip
    return federation.client.create_flow_run_from_deployment(deployment.id, parameters=wanted).id


def ended(federation: Running, run: UUID) -> FlowRun:
    def over() -> FlowRun | None:
        now = federation.client.read_flow_run(run)
        is_final = now.state is not None and now.state.is_final() and not now.state.is_crashed()
        return now if is_final else None

    return eventually(over, "the job ends")


def model_of(federation: Running, run: FlowRun) -> bytes:
    assert run.state is not None
    assert run.state.type == StateType.COMPLETED, run.state.message
    reference = FittedRef.model_validate(run.state.result())
    return (Path(reference.path) / "model.ubj").read_bytes()


def wait_for_round(federation: Running, run: UUID, number: int) -> None:
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))

    def done() -> bool:
        lines = federation.client.read_logs(wanted, limit=200)
        return any(line.message.startswith(f"round {number}:") for line in lines)

    eventually(done, f"round {number} is done")


def end_one(federation: Running, kind: str) -> None:
    """Kills one process of a running job."""
    process: psutil.Process = eventually(
        lambda: next(iter(federation.forks(kind)), None), f"there is a process {kind}"
    )
    process.kill()


def test_the_deployed_model_is_byte_for_byte_that_of_xgboosts_own_collective(
    federation: Running, data: dict[str, pd.DataFrame], expected: bytes
) -> None:
    assert model_of(federation, ended(federation, begin(federation))) == expected


@pytest.mark.parametrize("kind", [SITE, CONTROLLER])
def test_a_job_goes_on_from_its_snapshot_when_a_process_is_killed_mid_round(
    federation: Running, data: dict[str, pd.DataFrame], expected: bytes, kind: str
) -> None:
    run = begin(federation, rounds=ROUNDS)
    wait_for_round(federation, run, 3)
    end_one(federation, kind)
    assert model_of(federation, ended(federation, run)) == expected
    assert "resuming after round" in federation.text_of_logs(run)
