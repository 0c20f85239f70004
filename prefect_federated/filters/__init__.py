"""Filters: message in, message out, where messages leave and enter the server and the sites.

A job names them in an ordered list (`FilterSpec`); `Filters` runs them at the four points, and
`decode` undoes at the other end what an encoding did. This package neither carries messages nor
knows who sends them.
"""

from prefect_federated.filters.chains import SERVER_POINTS, SITE_POINTS, Filters
from prefect_federated.filters.decoding import as_received, decode, decoded_specs
from prefect_federated.filters.passage import (
    Filter,
    FilterRow,
    Passage,
    Point,
    message_filter,
    rows_of,
)
from prefect_federated.filters.specs import FilterSpec

__all__ = [
    "Filter",
    "FilterRow",
    "FilterSpec",
    "Filters",
    "Passage",
    "Point",
    "SERVER_POINTS",
    "SITE_POINTS",
    "as_received",
    "decode",
    "decoded_specs",
    "message_filter",
    "rows_of",
]
