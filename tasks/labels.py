"""Labels on a controller's flow run, by which the parts of a federation know of each other."""

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
