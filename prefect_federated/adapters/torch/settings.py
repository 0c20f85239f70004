"""What a job's config may set of a site's local training, checked."""

from dataclasses import dataclass

import torch

from prefect_federated.adapters.torch.hardware import check_precision
from prefect_federated.errors import ConfigurationError
from prefect_federated.executors import Site


@dataclass(frozen=True)
class Settings:
    """How a site trains and measures in one site task.

    Args:
        lr: Learning rate, 0 or more.
        epochs: Passes over the training examples, at least 1.
        batch_size: Examples a step; 0 for all at once.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16" or "float16".
        compile: Whether the forward pass goes through `torch.compile`.
    """

    lr: float
    epochs: int
    batch_size: int
    device: str
    precision: str
    compile: bool

    def of(self, site: Site) -> "Settings":
        """Returns these settings with what the site's config says instead.

        Raises:
            ConfigurationError: a value is out of range.
        """
        compile = site.config.get("compile", self.compile)
        if not isinstance(compile, bool):
            raise ConfigurationError(f"config 'compile' is {compile!r}; it is true or false.")
        settings = Settings(
            lr=at_least_0(site, "lr", self.lr),
            epochs=whole(site, "epochs", self.epochs, at_least=1),
            batch_size=whole(site, "batch_size", self.batch_size, at_least=0),
            device=str(site.config.get("device", self.device)),
            precision=str(site.config.get("precision", self.precision)),
            compile=compile,
        )
        check_precision(settings.precision)
        return settings


def set_options(optimizer: torch.optim.Optimizer, site: Site) -> None:
    """Gives a fresh optimizer the `momentum` and `weight_decay` that the config sets.

    Raises:
        ConfigurationError: a value is negative, or the optimizer knows no such option.
    """
    for name in ("momentum", "weight_decay"):
        if name not in site.config:
            continue
        value = at_least_0(site, name, 0)
        for group in optimizer.param_groups:
            if name not in group:
                raise ConfigurationError(
                    f"config {name!r} is {value}, but the executor's optimizer, "
                    f"{type(optimizer).__name__}, has no such option."
                )
            group[name] = value


def whole(site: Site, key: str, default: int, *, at_least: int) -> int:
    """Returns a whole number from the site's config.

    Raises:
        ConfigurationError: it is no whole number, or below `at_least`.
    """
    value = site.number(key, default)
    if value != value // 1 or value < at_least:
        raise ConfigurationError(
            f"config {key!r} is {value}; it must be a whole number, {at_least} or more."
        )
    return int(value)


def at_least_0(site: Site, key: str, default: float) -> float:
    """Returns a number that is not negative from the site's config.

    Raises:
        ConfigurationError: it is no number, negative or not finite.
    """
    value = site.number(key, default)
    if not 0 <= value < float("inf"):
        raise ConfigurationError(f"config {key!r} is {value}; it must be 0 or more.")
    return value
