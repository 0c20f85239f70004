"""Waiting for a person between two rounds, with Prefect's own pause and input.

The job's process and its sites stay as they are: the controller beats, the sites stay attached. A
controller that dies meanwhile is started again, and asks again.
"""

from uuid import uuid4

from prefect import get_client
from prefect.context import FlowRunContext
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.labels import AGREED, put_labels

_PATIENCE_S = 30 * 24 * 3600
_LOOK_EVERY_S = 2


class Decision(RunInput):
    """What the person who resumes a job decides: the fields of the form in the Prefect UI."""

    go_on: bool = True
    note: str = ""


def person_agrees(round: int) -> bool:
    """Waits until a person resumes the job, and returns whether it shall go on.

    The run is Paused meanwhile, and shows a form. What was agreed to is noted on the flow run: a
    job that comes back does not ask again.

    Args:
        round: The last round that is done, counted from 1.

    Raises:
        ConfigurationError: not inside a flow run.
        FlowPauseTimeout: Prefect's error when nobody has resumed it for 30 days.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError("a person can be waited for only inside a Prefect flow run.")
    run_id, log = context.flow_run.id, get_run_logger()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        if int(run.labels.get(AGREED, 0)) >= round:
            return True
        log.info("round %d is done; the job waits until a person resumes it", round)
        decision = pause_flow_run(
            wait_for_input=Decision,
            timeout=_PATIENCE_S,
            poll_interval=_LOOK_EVERY_S,
            key=f"round-{round}-{uuid4().hex}",  # Prefect waits but once for each key
        )
        said = f": {decision.note}" if decision.note else ""
        log.info("a person %s%s", "lets it go on" if decision.go_on else "ends it here", said)
        if decision.go_on:
            put_labels(client, run_id, {AGREED: round})
    return decision.go_on
