"""The best model of a job, kept beside its last one."""

from prefect_federated.errors import ConfigurationError
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.snapshots import State, publish


def keep_best(fed: Federation, state: State, by: str) -> bool:
    """Evaluates a round's model at the sites and keeps it if it is the best so far; whether it is.

    The best is `best.safetensors`, beside the job's model, and has a link in the Prefect UI. What
    the sites measure is the global model itself, on their own data, averaged over the sites: not
    what they have said while they trained.

    Args:
        fed: The running federation.
        state: The job after a round.
        by: A metric of the executor's "evaluate": "accuracy" (the higher the better), or "-loss"
            (the lower the better).

    Raises:
        ExecutorNotFound: the executor has no "evaluate".
        ConfigurationError: it gives no such metric.
        QuorumNotReached: too few sites have evaluated.
    """
    name, sign = by.removeprefix("-"), -1.0 if by.startswith("-") else 1.0
    earlier = [
        sign * float(str(row[name]))
        for row in fed.reporter.history
        if row["kind"] == "evaluate" and row["round"] != 0 and name in row
    ]
    replies = fed.broadcast("evaluate", state.model, round=state.round, late_weight=0)
    for _ in replies:
        pass
    metrics = replies.report.metrics if replies.report is not None else {}
    if name not in metrics:
        raise ConfigurationError(
            f"the best model is chosen by {by!r}, but 'evaluate' of executor "
            f"{fed.job.executor!r} gives {', '.join(sorted(metrics)) or 'no metric'}."
        )
    value = float(f"{metrics[name]:.7g}")  # as the table has it, with which it is compared
    if earlier and sign * value <= max(earlier):
        return False
    reference = publish(state, "best")
    fed.events.tell(
        "best_model", state.round, {"metric": name, "value": value, "path": reference.path}
    )
    return True
