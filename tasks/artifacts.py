"""A job's artifacts in the Prefect UI: progress, of the job and of its sites; table; curves."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from prefect_federated.messages import JsonValue
from prefect_federated.tasks.at_work import SiteProgress
from prefect_federated.tasks.curves import curves_of, last_values

_SITES_SHOWN = 16
_NOT_IN_THE_TABLE = "site_metrics"

History = Sequence[Mapping[str, JsonValue]]


class Artifacts:
    """Makes the artifacts of one job.

    Args:
        key: Begins their keys: the flow's name.
        say: Takes a line for the log.
    """

    def __init__(self, key: str, say: Callable[[str], object]) -> None:
        self._key = key
        self._say = say
        self._progress: UUID | None = None
        self._sites: dict[str, UUID] = {}
        self._is_plot_missing = False

    def progress(self, percent: float) -> None:
        """Shows how much of the job is done."""
        self._progress = _shown(
            self._progress, f"{self._key}-progress", percent, "Rounds done, percent"
        )

    def site(self, name: str, at: SiteProgress) -> None:
        """Shows how far a site is with its site task; up to 16 sites, that say so."""
        if at.total <= 0 or (name not in self._sites and len(self._sites) >= _SITES_SHOWN):
            return
        what = f"{name}: round {at.round}, {at.kind}" if at.round else f"{name}: {at.kind}"
        text = f"{what}, {at.text()}" + (", done" if at.is_answered else "")
        key = f"{self._key}-progress-{key_of(name)}"
        self._sites[name] = _shown(self._sites.get(name), key, at.percent, text)

    def table(self, history: History) -> None:
        """Shows the job's table."""
        columns = dict.fromkeys(name for row in history for name in row)
        columns.pop(_NOT_IN_THE_TABLE, None)
        create_table_artifact(  # the UI takes the columns from the first row
            table=[{name: row.get(name, "") for name in columns} for row in history],
            key=f"{self._key}-rounds",
            description="One row a call to the sites; metrics are means over the sites",
        )

    def curves(self, history: History) -> None:
        """Shows the metrics by round as a picture, and their last values as a table."""
        curves = curves_of(history)
        if not curves or self._is_plot_missing:
            return
        try:
            from prefect_federated.adapters.plot import curves_png
        except ImportError:
            self._is_plot_missing = True
            self._say("no picture of the curves: install prefect-federated[plot]")
            return
        encoded = base64.b64encode(curves_png(curves)).decode()
        create_markdown_artifact(
            f"# {self._key}\n\n![metrics by round](data:image/png;base64,{encoded})\n\n"
            f"{last_values(curves)}\n",
            key=f"{self._key}-curves",
            description="Metrics by round: the sites, and the mean over them",
        )


def key_of(name: str) -> str:
    """Returns a name as the key of an artifact has it: small letters, digits and dashes.

    >>> key_of("Site_1")
    'site-1'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _shown(known: UUID | None, key: str, percent: float, description: str) -> UUID:
    """Makes a progress artifact or, where it is known, brings it up to date; returns its id."""
    if known is not None:
        update_progress_artifact(known, progress=percent, description=description)
        return known
    made = create_progress_artifact(percent, key=key, description=description)
    assert isinstance(made, UUID)  # Prefect's type tells of a coroutine, too
    return made
