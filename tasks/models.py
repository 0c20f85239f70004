"""What many flows do with a model before the first round and after the last."""

from collections.abc import Mapping

from prefect_federated.errors import QuorumNotReached
from prefect_federated.messages import Tensor, Tensors, Update
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.snapshots import load_model


def initial_model(fed: Federation, path: str | None = None) -> dict[str, Tensor]:
    """Returns the model to begin with: a file's, or what the executor's "initialize" gives.

    The sites are asked one after the other until one gives a model, so the server needs neither
    the model's code nor its framework.

    Args:
        fed: The running federation.
        path: A `.safetensors` file in Prefect's result storage.

    Raises:
        SnapshotCorrupt: `path` is not such a file.
        QuorumNotReached: no site gave a model; the message has each site's reason.
    """
    if path is not None:
        return load_model(path)
    reasons: list[str] = []
    for site in fed.sites:
        for reply in fed.broadcast("initialize", sites=[site], quorum=0, late_weight=0):
            if isinstance(reply, Update):
                return dict(reply.tensors)
            reasons.append(f"{reply.site}: {reply.reason}")
    raise QuorumNotReached(
        "no site gave a model to begin with: "
        f"{'; '.join(reasons) or 'none is connected'}. Correct the executor's `initialize`, or "
        "name a .safetensors file as `initial_model`."
    )


def evaluate(fed: Federation, model: Tensors) -> Mapping[str, float]:
    """Asks all sites to evaluate a model; returns the metrics' means over the sites, weighted.

    The job's table gets a row. An executor without "evaluate" is not asked: there is nothing then.
    """
    if not fed.can("evaluate"):
        return {}
    replies = fed.broadcast("evaluate", model, quorum=0, late_weight=0)
    for _ in replies:
        pass
    return {} if replies.report is None else replies.report.metrics
