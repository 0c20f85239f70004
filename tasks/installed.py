"""Says what to install where a job needs an optional package and the server lacks it."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect_federated.errors import ConfigurationError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wraps an import inside a flow, so that flows are known without their packages.

    Args:
        extra: The extras that bring what is imported, such as "sklearn,statistics".

    Raises:
        ConfigurationError: a package is not installed here.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"this job needs the package {error.name!r}, which is not installed at the server. "
            f"Install prefect-federated[{extra}] there."
        ) from error
