"""Executors of the tests: those of linear models, of which each site fails once in a round."""

from prefect_federated import Site, Tensors, Update, executor
from prefect_federated.linear import site as built_in
from prefect_federated.linear.site import alone, columns, evaluate, gram, moments

__all__ = ["alone", "columns", "evaluate", "gram", "moments"]


@executor
def newton(model: Tensors, site: Site) -> Update:
    """The sums of a round; raises in the one that the config says, the first time."""
    mark = site.data / "has-failed"
    if site.round == site.config.get("fails_once_in") and not mark.exists():
        mark.touch()
        raise ValueError("this round fails")
    return built_in.newton(model, site)
