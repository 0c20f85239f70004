"""The process of one job at a site: Prefect's engine for the flow `join`, and no other flow.

Prefect's own `python -m prefect.engine` would load whatever flow the server names; this does not.
"""

import os
from uuid import UUID

from prefect._internal.control_listener import configure_from_env
from prefect.engine import handle_engine_signals
from prefect.flow_engine import load_flow_run, run_flow

from prefect_federated.agents.processes import end_with_parent, log_to_stderr
from prefect_federated.agents.site_flow import join


def main() -> None:
    """Runs the flow run that the worker names in PREFECT__FLOW_RUN_ID."""
    end_with_parent()
    log_to_stderr()
    run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    configure_from_env()  # the worker's line to this process, by which it cancels
    with handle_engine_signals(run_id):
        flow_run = load_flow_run(flow_run_id=run_id)
        run_flow(join, flow_run=flow_run)


if __name__ == "__main__":
    main()
