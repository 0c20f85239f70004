"""What jobs share that end in a pipeline of scikit-learn: its files, and the encoding in snapshots.

scikit-learn is imported when a job needs it, since the server registers jobs that it may never run.
"""

import json
from collections.abc import Iterable

import numpy as np

from prefect_federated.errors import ConfigurationError, SitesDisagree
from prefect_federated.messages import Tensor, Tensors
from prefect_federated.tabular.encoding import Encoding
from prefect_federated.tabular.saved import Fitted
from prefect_federated.tabular.schema import Schema


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


def encoding_tensors(encoding: Encoding) -> dict[str, Tensor]:
    """Returns the encoding as a snapshot holds it."""
    return {"encoding": np.frombuffer(json.dumps(encoding.to_json()).encode(), np.uint8)}


def encoding_in(tensors: Tensors, schema: Schema) -> Encoding:
    """Returns the encoding that a snapshot holds.

    Raises:
        SitesDisagree: the sites have other columns now, for which its numbers mean nothing.
    """
    said = np.asarray(tensors["encoding"]).tobytes()
    encoding = Encoding.from_json(json.loads(said))
    if encoding.features != schema.features:
        raise SitesDisagree(
            "the job goes on from a snapshot, and the sites' columns or categories are no longer "
            f"those that it was made with: there were {len(encoding.names)} encoded columns. Let "
            "the sites that took part come back with their data as they were, or start a new job."
        )
    return encoding


def missing_notes(sites: Iterable[str], answered: Iterable[str]) -> list[str]:
    """Returns a note where sites that take part are not in the last round's sums."""
    missing = sorted(set(sites) - set(answered))
    if not missing:
        return []
    return [f"the last round's sums are without the rows of {', '.join(missing)}"]
