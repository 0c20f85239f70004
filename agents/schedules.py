"""Lets the Prefect server make the runs of schedules, which it does not by itself.

Prefect 3.8 inserts them all at once, each with its state beside its columns. SQLAlchemy 2.1, which
Prefect allows, refuses that for `FlowRun.state` (a hybrid property without a setter for bulk
inserts), so that with a fresh installation no schedule ever ran; 2.0 left the state out, as Prefect
means it to be.
"""

from prefect.server.database.orm_models import FlowRun


def let_schedules_make_runs() -> None:
    """Has bulk inserts of flow runs leave the state out; it is written on its own afterwards."""
    hybrid = vars(FlowRun)["state"]
    if getattr(hybrid, "bulk_dml_setter", True) is None:  # None: SQLAlchemy 2.1, and not yet set
        hybrid.bulk_dml_setter = _left_out


def _left_out(_: type[FlowRun], mapping: object, state: object) -> None:
    """Takes the state and makes no column of it."""
