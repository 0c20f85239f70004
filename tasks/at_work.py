"""What sites say of how far they are: for a progress bar a site, and a line of the log."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from prefect_federated.messages import JsonValue
from prefect_federated.transport.signals import Moment

_NAMED = 8  # sites that a line names
_METRICS_NAMED = 2


@dataclass
class SiteProgress:
    """How far a site is with its site task.

    Args:
        round: The round; 0 outside rounds.
        kind: The site task.
        done: How much is done,
        total: of how much; 0 if the site has not said so,
        unit: of what.
        metrics: The newest values of what it has measured on the way.
        is_answered: Whether its update has come.
    """

    round: int
    kind: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    is_answered: bool = False

    @property
    def percent(self) -> float:
        """What is done of the site task, 0 to 100."""
        share = 1.0 if self.is_answered else self.done / self.total if self.total > 0 else 0.0
        return 100.0 * min(max(share, 0.0), 1.0)

    @property
    def place(self) -> str:
        """How far it is, such as "epoch 2/5"; empty if the site has not said so."""
        return f"{self.unit} {self.done:g}/{self.total:g}".strip() if self.total > 0 else ""

    def text(self) -> str:
        """Returns how far it is and its newest metrics, such as "epoch 2/5, loss 0.31"."""
        metrics = list(self.metrics.items())[:_METRICS_NAMED]
        parts = [self.place, *(f"{name} {value:.4g}" for name, value in metrics)]
        return ", ".join(part for part in parts if part)


class AtWork:
    """The sites that say how far they are. Any thread may tell and ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sites: dict[str, SiteProgress] = {}
        self._changed: dict[str, None] = {}  # an ordered set: the one that waits longest first

    def told(self, moment: Moment) -> bool:
        """Takes a moment of the hub's; returns whether it says how far a site is."""
        detail, site = moment.detail, moment.site
        with self._lock:
            if moment.name == "update_received":
                if (known := self._sites.get(site)) is None or known.is_answered:
                    return False
                if (known.kind, known.round) == (str(detail.get("kind")), moment.round):
                    known.is_answered = True
                    self._changed[site] = None
                return False
            if moment.name not in ("progressed", "metrics_logged"):
                return False
            progress = self._of(site, moment.round, str(detail.get("kind")))
            if moment.name == "progressed":
                progress.done, progress.total = _number(detail, "done"), _number(detail, "total")
                progress.unit = str(detail.get("unit", ""))
            elif isinstance(metrics := detail.get("metrics"), Mapping):
                progress.metrics |= {name: _float(value) for name, value in metrics.items()}
            self._changed[site] = None
            return True

    def changed(self) -> tuple[str, SiteProgress] | None:
        """Returns the site whose news wait longest, and takes them for shown; None if none wait."""
        with self._lock:
            if not self._changed:
                return None
            site = next(iter(self._changed))
            del self._changed[site]
            return site, self._sites[site]

    def line(self) -> str:
        """Returns what the sites at work do, in a line; empty if none has said how far it is."""
        with self._lock:
            newest = max((progress.round for progress in self._sites.values()), default=0)
            working = {
                site: progress
                for site, progress in self._sites.items()
                if not progress.is_answered and progress.round == newest
            }
            if not working:
                return ""
            said = [f"{site} {progress.text()}" for site, progress in working.items()][:_NAMED]
            kind = next(iter(working.values())).kind
        more = f"; and {len(working) - _NAMED} more" if len(working) > _NAMED else ""
        return f"{f'round {newest}' if newest else kind}: {'; '.join(said)}{more}"

    def _of(self, site: str, round: int, kind: str) -> SiteProgress:
        known = self._sites.get(site)
        if known is None or (known.round, known.kind) != (round, kind):
            known = self._sites[site] = SiteProgress(round, kind)
        return known


def _number(detail: Mapping[str, JsonValue], key: str) -> float:
    return _float(detail.get(key, 0.0))


def _float(value: JsonValue) -> float:
    return float(cast(float | str, value))
