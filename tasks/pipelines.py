"""Fitted estimators with the federation's encoding before them, as files. Needs scikit-learn.

It is imported when a job needs it, since the server registers jobs that it may never run.
"""

from prefect_federated.errors import ConfigurationError
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.saved import Fitted


def check_installed() -> None:
    """Makes sure, before a job begins, that its result can be made.

    Raises:
        ConfigurationError: scikit-learn is not installed on the server.
    """
    try:
        import prefect_federated.adapters.sklearn.saved  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed on the server, and the result is a scikit-learn "
            "object. Install prefect-federated[statistics,sklearn] there."
        ) from error


def pipeline_files(encoding: Encoding, estimator: object, *, drop_first: bool = False) -> Fitted:
    """Returns the files of a pipeline of the encoding and an estimator fitted to its columns.

    Args:
        encoding: As the sites have agreed on it.
        estimator: Fitted.
        drop_first: Whether the first category of each feature has no column.
    """
    from prefect_federated.adapters.sklearn.preprocessing import with_preprocessing
    from prefect_federated.adapters.sklearn.saved import fitted_of

    return fitted_of(with_preprocessing(encoding, estimator, drop_first=drop_first))
