"""Labels on a controller's flow run, by which the parts of a federation know of each other.

Prefect patches labels by reading all of them and writing all of them. Two patches at the same time
lose one of the two. So the threads of a process take turns (`put_labels`), and what another process
could undo is said again with every beat.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:  # the gateway reads the names here, and starts without Prefect
    from prefect.client.orchestration import SyncPrefectClient

_turn = threading.Lock()

ENDPOINT = "federated.endpoint"
"""Where the job's endpoint listens, "host:port": the gateways route to it."""

EPOCH = "federated.epoch"
"""Number of the newest attempt: older ones stop, and the sites obey none but the newest."""

BEAT = "federated.beat"
"""Changes every `BEAT_S` seconds while the controller lives: the overseer watches it."""

ROUND = "federated.round"
"""The round that the job is in."""

SITE_RUNS = "federated.site_runs"
"""The sites' flow runs, as a JSON object of site name -> flow run id."""

CRASHES = "federated.crashes"
"""How often the job has crashed in its round, "round:count": kept by the overseer."""

BEAT_S = 2.0
"""Seconds between two beats."""

AGREED = "federated.agreed"
"""The last round after which a person was asked, and let the job go on."""


def put_labels(client: "SyncPrefectClient", run_id: UUID, labels: Mapping[str, str | int]) -> None:
    """Sets labels of a flow run; no other thread of this process does so at the same time."""
    with _turn:
        client.update_flow_run_labels(run_id, dict(labels))
