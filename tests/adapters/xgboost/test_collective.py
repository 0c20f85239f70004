"""Collective calls of a training: reduced as XGBoost's own, on loopback only, and with an end."""

import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import xgboost
from xgboost import collective as own
from xgboost.tracker import RabitTracker

from prefect_federated.adapters.xgboost import collective
from prefect_federated.adapters.xgboost.boosting import Plan, Shard, boost
from prefect_federated.adapters.xgboost.collective import Training
from prefect_federated.adapters.xgboost.events import (
    CollectiveCall,
    Ended,
    Failed,
    Gone,
    RoundDone,
    event_of,
    update_of,
)
from prefect_federated.adapters.xgboost.loopback import serving
from prefect_federated.adapters.xgboost.protocol import SERVICE
from prefect_federated.adapters.xgboost.reduction import result_of
from prefect_federated.errors import ConfigurationError, UpdateRejected
from prefect_federated.executors import end_sites
from prefect_federated.messages import Update
from tests.adapters.xgboost.relay import relayed, sites_of
from tests.adapters.xgboost.shards import made, together
from tests.agents.network import eventually

PARAMETERS: dict[str, Any] = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}


def call(buffer: np.ndarray[Any, Any], **changed: Any) -> CollectiveCall:
    about = {"method": "Allreduce", "sequence": 7, "data_type": str(buffer.dtype),
             "reduction": "sum"}  # fmt: skip
    return CollectiveCall(buffer=buffer.view(np.uint8), **{**about, **changed})


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("xgboost-")]


@pytest.mark.parametrize("sites", [2, 3, 5])
def test_sums_are_those_of_xgboosts_own_collective_to_the_last_bit(sites: int) -> None:
    sizes = (1, 2, 3, 4, 7, 1001)
    random = np.random.default_rng(sites)
    given = [
        [random.normal(size=size) * 10.0 ** random.integers(-8, 8, size) for size in sizes]
        for _ in range(sites)
    ]
    tracker = RabitTracker(host_ip="127.0.0.1", n_workers=sites, sortby="task")
    tracker.start()
    arguments = tracker.worker_args()

    def work(rank: int) -> list[Any]:
        with own.CommunicatorContext(**arguments, dmlc_task_id=f"{rank:03d}"):
            return [own.allreduce(array.copy(), own.Op.SUM) for array in given[rank]]

    expected: Any = together([lambda rank=rank: work(rank) for rank in range(sites)])  # type: ignore[misc]
    for place in range(len(sizes)):
        result = result_of({f"s{rank}": call(given[rank][place]) for rank in range(sites)})
        assert result.tobytes() == expected[0][place].tobytes()


def test_each_reduction_and_gathering_is_numpys() -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 99, 10).astype(np.int32) for _ in range(3)]
    for name, reduce in (
        ("max", np.maximum), ("min", np.minimum), ("sum", np.add), ("and", np.bitwise_and),
        ("or", np.bitwise_or), ("xor", np.bitwise_xor),
    ):  # fmt: skip
        calls = {f"s{n}": call(array, reduction=name) for n, array in enumerate(arrays)}
        expected = reduce(reduce(arrays[0], arrays[1]), arrays[2])
        np.testing.assert_array_equal(result_of(calls).view(np.int32), expected)
    gathered = {f"s{n}": call(a, method="AllgatherV") for n, a in enumerate(arrays)}
    np.testing.assert_array_equal(result_of(gathered).view(np.int32), np.concatenate(arrays))
    told = {f"s{n}": call(a, method="Broadcast", root=1) for n, a in enumerate(arrays)}
    np.testing.assert_array_equal(result_of(told).view(np.int32), arrays[1])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sequence": 8}, "site 'b' is at the collective call"),
        ({"buffer": np.zeros(2)}, "site 'b' gives 2 numbers to an allreduce, site 'a' 3"),
    ],
)
def test_sites_that_are_not_alike_are_named(changed: dict[str, Any], told: str) -> None:
    other = call(changed.pop("buffer", np.zeros(3)), **changed)
    with pytest.raises(UpdateRejected, match=told):
        result_of({"a": call(np.zeros(3)), "b": other})


def test_calls_that_nobody_can_do_are_refused() -> None:
    for wrong in ({"data_type": "object"}, {"reduction": "mean"}, {"method": "Explode"}):
        with pytest.raises(UpdateRejected, match="same version of xgboost"):
            result_of({"a": call(np.zeros(3), **wrong)})
    with pytest.raises(UpdateRejected, match="site 'x' answered with what is no event"):
        event_of(Update(site="x"))


def test_events_come_back_as_they_were_sent() -> None:
    for event in (RoundDone(3, {"test-auc": 0.5}), Failed("why"), Gone()):
        back = event_of(update_of(event))
        assert type(back) is type(event)
        assert str(back) == str(event)


def test_the_adapter_listens_on_loopback_and_takes_its_own_client_only() -> None:
    with serving(lambda call: call.buffer) as arguments:
        given = arguments(0, 2)
        port = int(given["federated_server_address"].rpartition(":")[2])
        listening = [
            connection.laddr.ip.removeprefix("::ffff:")
            for connection in psutil.Process().net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
        assert listening == ["127.0.0.1"]
        folder = Path(given["federated_client_key_path"]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        authority = Path(given["federated_server_cert_path"]).read_bytes()
        stranger = grpc.ssl_channel_credentials(authority)  # without the training's certificate
        with grpc.secure_channel(f"127.0.0.1:{port}", stranger) as channel:
            ask: Any = channel.unary_unary(f"/{SERVICE}/Allreduce")
            with pytest.raises(grpc.RpcError):
                ask(b"", timeout=5)
    assert not folder.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def work_of(rounds: int = 3) -> Any:
    x, y = made(300)

    def work(training: Training) -> Ended:
        part = slice(training.rank, None, training.sites)
        plan = Plan(PARAMETERS, rounds, 0, 1, np.zeros(0, np.uint8))
        return boost(training, plan, lambda: Shard(xgboost.DMatrix(x[part], y[part])))

    return work


def test_no_key_is_on_the_disk_while_a_training_runs_and_no_thread_stays(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("prefect-federated-*"))
    seen: list[Path] = []

    def look(event: RoundDone) -> dict[str, Any]:
        seen.extend(set(Path(tempfile.gettempdir()).glob("prefect-federated-*")) - before)
        return {}

    ended, rounds, calls = relayed(sites_of(tmp_path, 2), work_of(), look)
    assert isinstance(ended, Ended)
    assert len(rounds) == 3
    assert calls > 3
    assert not seen
    eventually(lambda: not threads(), "the threads end")


def test_a_training_that_waits_for_a_call_ends_when_the_job_does(tmp_path: Path) -> None:
    site = sites_of(tmp_path, 2)[0]  # the other one never comes
    event = event_of(collective.start(site, work_of))
    assert isinstance(event, CollectiveCall)
    assert any(re.fullmatch(r"xgboost-\d", name) for name in threads())
    end_sites(tmp_path)
    eventually(lambda: not threads(), "the threads end")
    assert isinstance(event_of(collective.go_on({}, site)), Gone)


def test_what_fails_in_a_training_is_told_without_a_stack_trace(tmp_path: Path) -> None:
    def work(training: Training) -> Ended:
        xgboost.train({"objective": "no:such"}, xgboost.DMatrix(np.zeros((2, 1)), [0, 1]), 1)
        raise AssertionError

    failed, _, _ = relayed(sites_of(tmp_path, 2), work)
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("XGBoostError: Unknown objective function: `no:such`")
    eventually(lambda: not threads(), "the threads end")


def test_an_xgboost_without_its_federated_client_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xgboost, "build_info", lambda: {"USE_FEDERATED": False})
    with pytest.raises(ConfigurationError, match="built without federated learning"):
        collective.start(sites_of(tmp_path, 2)[0], work_of)


def test_a_proxy_of_the_machine_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_grpc_proxy", "")
    ended, _, _ = relayed(sites_of(tmp_path, 2), work_of(1))
    assert isinstance(ended, Ended)
