"""Lloyd's algorithm at the server: all restarts in each round, and an inertia that never rises.

A step is taken only if the inertia at the new centres, which the sites measure in the round after,
is not larger. It could be: by rounding, by a centre moved from where it had few rows, or because
sites count small cells with others. Such a step is taken back, and its restart ends.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prefect_federated.kmeans.cells import Cells, Floats
from prefect_federated.kmeans.seeding import far_points
from prefect_federated.messages import Tensor, Tensors


class Search:
    """The search for the centres with the least inertia, from many first ones.

    Args:
        first: First centres, "`(n_restarts, n_clusters, n_columns)`".
        points: Means of the sites' groups of rows, "`(n_groups, n_columns)`": an empty centre goes
            to one of these.
        weights: Their rows.
        tolerance: A restart ends when its inertia falls by a smaller share.

    Source: Lloyd 1982, "Least Squares Quantization in PCM", section III, method I.
    """

    def __init__(self, first: Floats, points: Floats, weights: Floats, tolerance: float) -> None:
        self.centers = first
        """The best centres of each restart so far."""
        self.points, self.weights = points, weights
        self.tolerance = tolerance
        self.curve: list[float] = []
        """The least inertia of all restarts, by round, of the sites that answered then."""
        self._next = first.copy()
        self._plain = first.copy()
        self._is_active = np.ones(len(first), bool)
        self._is_reseeded = np.zeros(len(first), bool)
        self._inertia: dict[str, Floats] = {}
        self._counts: dict[str, Floats] = {}

    @property
    def asked(self) -> Floats:
        """Centres of the restarts that go on: what the sites are asked for their sums of."""
        return self._next[self._is_active]

    @property
    def is_done(self) -> bool:
        """Whether all restarts have ended."""
        return not self._is_active.any()

    @property
    def inertia(self) -> Floats:
        """Inertia of each restart's centres, at the sites that have measured it of all of them."""
        found = np.zeros(len(self.centers))
        for site in self._known():
            found = found + self._inertia[site]
        return found

    @property
    def best(self) -> int:
        """The restart with the least inertia."""
        return int(np.argmin(self.inertia))

    def counts(self) -> dict[str, Floats]:
        """Returns each site's rows by centre of the best restart, as the site counted them."""
        return {site: counts[self.best] for site, counts in self._counts.items()}

    def take(self, by_site: Mapping[str, Cells]) -> None:
        """Takes the sites' sums at `asked`; sets the next centres, or ends restarts.

        Raises:
            RuntimeError: the inertia rose, which the rules exclude.
        """
        sites = sorted(by_site)
        active = np.flatnonzero(self._is_active)
        shape = len(self.centers), self.centers.shape[1]
        for site in sites:
            self._inertia.setdefault(site, np.full(shape[0], np.nan))
            self._counts.setdefault(site, np.zeros(shape))
        before = {site: values.copy() for site, values in self._inertia.items()}
        known = self._known()
        for place, restart in enumerate(active):
            common = [site for site in sites if not np.isnan(before[site][restart])]
            old = sum(float(before[site][restart]) for site in common)  # in the sites' order, as
            new = sum(float(by_site[site].inertia[place]) for site in common)  # `inertia` adds
            if common and new > old:
                self._take_back(restart)
                continue
            self.centers[restart] = self._next[restart]
            for site in self._inertia:
                is_told = site in by_site
                self._inertia[site][restart] = by_site[site].inertia[place] if is_told else np.nan
                self._counts[site][restart] = by_site[site].counts[place] if is_told else 0
            if common and old - new <= self.tolerance * old:
                self._is_active[restart] = False
                continue
            counts = np.sum([by_site[site].counts[place] for site in sites], axis=0)
            sums = np.sum([by_site[site].sums[place] for site in sites], axis=0)
            self._move(restart, sums, counts)
        self.curve.append(float(self.inertia.min()))
        if known == self._known() and self.curve[-1] > min(self.curve[-2:]):
            raise RuntimeError(f"the inertia rose from {self.curve[-2]!r} to {self.curve[-1]!r}.")

    def tensors(self) -> dict[str, Tensor]:
        """Returns the search's state, for a snapshot."""
        state: dict[str, Tensor] = {
            "centers": self.centers,
            "next": self._next,
            "plain": self._plain,
            "flags": np.stack([self._is_active, self._is_reseeded]).astype(np.uint8),
            "points": self.points,
            "weights": self.weights,
            "curve": np.array(self.curve),
        }
        for site in self._inertia:
            state[f"inertia.{site}"] = self._inertia[site]
            state[f"counts.{site}"] = self._counts[site]
        return {name: value.copy() for name, value in state.items()}  # `take` writes into them

    @classmethod
    def restored(cls, state: Tensors, tolerance: float) -> "Search":
        """Returns the search that a snapshot holds."""
        own = {name: np.array(value) for name, value in state.items()}
        search = cls(own["centers"], own["points"], own["weights"], tolerance)
        search._next, search._plain = own["next"], own["plain"]
        search._is_active, search._is_reseeded = own["flags"].astype(bool)
        search.curve = own["curve"].tolist()
        for name, value in own.items():
            kind, _, site = name.partition(".")
            if site:
                {"inertia": search._inertia, "counts": search._counts}[kind][site] = value
        return search

    def _take_back(self, restart: np.intp) -> None:
        """Tries the step once more with the empty centres where they were, or ends the restart."""
        if self._is_reseeded[restart]:
            self._next[restart] = self._plain[restart]
            self._is_reseeded[restart] = False
        else:
            self._is_active[restart] = False

    def _move(self, restart: np.intp, sums: Floats, counts: Floats) -> None:
        is_empty: NDArray[np.bool_] = counts == 0
        means = sums / np.where(is_empty, 1, counts)[:, None]
        self._plain[restart] = np.where(is_empty[:, None], self.centers[restart], means)
        moved = self._plain[restart].copy()
        self._is_reseeded[restart] = is_empty.any() and not is_empty.all()
        if self._is_reseeded[restart]:
            moved[is_empty] = far_points(
                self.points, self.weights, moved[~is_empty], int(is_empty.sum())
            )
        self._next[restart] = moved

    def _known(self) -> list[str]:
        """The sites that have measured the inertia of all restarts."""
        return sorted(site for site, told in self._inertia.items() if not np.isnan(told).any())
