"""Ditto at a site: the global model is trained as ever, and beside it one of the site's own.

Source: Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
Algorithm 1: the site's v minimizes F(v) + lambda / 2 ||v - w_t||^2, w_t being the received model;
each step is v <- v - lr (grad F(v) + lambda (v - w_t)). The personal model takes `ditto_epochs`
passes in the same order of batches as the global one, and begins as the first model that came.
"""

from prefect_federated.adapters.torch.fedprox import proximal, train
from prefect_federated.adapters.torch.settings import at_least_0, whole
from prefect_federated.adapters.torch.tensors import load_tensors, tensors_of
from prefect_federated.adapters.torch.training import LocalModel, trained_parameters
from prefect_federated.errors import ConfigurationError
from prefect_federated.kept import Kept
from prefect_federated.messages import Tensors, Update

DEFAULT_LAMBDA = 0.1
LABEL = "personal_"
"""Begins the names of the personal model's metrics."""


def ditto(local: LocalModel, received: Tensors) -> Update:
    """Returns the update of the global model, with the personal model's metrics beside its own.

    The personal model stays in the site's folder of the job. A round that is done twice starts
    from the personal model before that round both times.

    Raises:
        ConfigurationError: `ditto_lambda` is negative, the personal model does not fit the module
            any more, or as `train`.
        SnapshotCorrupt: the personal model's file is damaged.
        UpdateRejected: one of the losses is not finite any more.
    """
    site, module = local.site, local.module
    strength = at_least_0(site, "ditto_lambda", DEFAULT_LAMBDA)
    if strength * local.settings.lr >= 2:
        raise ConfigurationError(
            f"ditto_lambda is {strength} and lr {local.settings.lr}: steps of lr * ditto_lambda = "
            f"{strength * local.settings.lr:g} overshoot, and the personal model diverges. Their "
            "product must be below 2; lower either."
        )
    epochs = whole(site, "ditto_epochs", local.settings.epochs, at_least=1)
    kept = Kept(site.state, "personal")
    before = kept.newest_before(site.round)
    update = train(local, received)

    load_tensors(module, received)
    near_received = proximal(trained_parameters(module).values(), strength)
    if before is not None:
        load_tensors(module, kept.read(before))
    trained = local.fit(near_received, epochs, LABEL)
    measured = local.measure(LABEL)
    kept.write(site.round, tensors_of(module), after=before)
    metrics = {**update.metrics, **measured.metrics, f"{LABEL}train_loss": trained.loss}
    return Update(
        update.tensors,
        weight=update.weight,
        metrics=metrics,
        metrics_weight=update.metrics_weight,
        buffers=update.buffers,
    )
