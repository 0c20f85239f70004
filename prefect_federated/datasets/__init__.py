"""A site's datasets: named in the site's own `datasets.yaml`, read in chunks, never sent anywhere.

What reads files and databases is imported when a dataset is opened: it needs pandas, pyarrow and
SQLAlchemy, which come with prefect-federated[statistics].
"""

from prefect_federated.datasets.dataset import Dataset, Datasets
from prefect_federated.datasets.file import load_datasets
from prefect_federated.datasets.kinds import Kind
from prefect_federated.datasets.sources import Aggregate
from prefect_federated.datasets.table import Table

__all__ = ["Aggregate", "Dataset", "Datasets", "Kind", "Table", "load_datasets"]
