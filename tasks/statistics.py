"""The questions of a statistics job: asked of all sites, and what comes back gathered."""

import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from prefect_federated.datasets.table import close
from prefect_federated.errors import ConfigurationError, NotEnoughSites, UpdateRejected
from prefect_federated.messages import SiteFailure
from prefect_federated.statistics.answers import answers_in
from prefect_federated.statistics.gathered import Gathered
from prefect_federated.statistics.merge import About, deviations, statistics_of
from prefect_federated.statistics.question import Question
from prefect_federated.statistics.schema import Statistics, Withheld
from prefect_federated.tasks.federation import Federation
from prefect_federated.tasks.statistics_result import (
    Earlier,
    check_can_report,
    last_of,
    prepare,
)

_FINE = 16
"""Parts of a shown bin: with so many, quantiles of most columns need no refinement."""
_PARTS = 16
_MOST_REFINEMENTS = 6
_REASONS = 10
_SITES_NAMED = 3


class Wanted(Protocol):
    """What a statistics job asks for: `StatisticsJob`, which is with the flow."""

    dataset: str
    splits: list[str] | None
    features: list[str] | None
    bins: int
    ranges: dict[str, tuple[float, float]]
    quantiles: list[float]
    group_by: str | None
    correlation: bool
    name: str | None
    absent_after_s: float

    def updates_needed(self, asked: int) -> int:
        """Returns the number of answers that are enough."""
        ...


class Survey:
    """One statistics job: asks, gathers, and merges what the sites answer.

    Args:
        fed: The running federation.
        job: What is asked for.

    Raises:
        ConfigurationError: what makes the report is not installed here.
    """

    def __init__(self, fed: Federation, job: Wanted) -> None:
        check_can_report()
        self._fed = fed
        self._job = job
        self._gathered = Gathered()
        self._round = 0
        self._refinements = 0
        self._edges: dict[tuple[str, str], list[float]] = {}  # that were asked for last
        name = job.name or f"{deployment.name or 'simulated'}/{job.dataset}"
        self._about = About(
            dataset=job.dataset,
            name=name,
            run=str(flow_run.id or "simulated"),
            created=datetime.now(UTC),
            quantiles=sorted(set(job.quantiles)),
            group_by=job.group_by,
        )
        self._question = Question(
            dataset=job.dataset,
            splits=job.splits,
            features=job.features,
            group_by=job.group_by,
            correlation=job.correlation,
            bins=job.bins,
            fine=_FINE if job.quantiles else 1,
            ranges=job.ranges,
            job=self._about.run,
        )
        self.earlier: Earlier | None = last_of(name, self._about.run)
        """The last completed run of the same name."""

    def wait_for_sites(self) -> None:
        """Waits for the sites that have not joined yet, for as long as the job says."""
        hub = self._fed.hub
        deadline = hub.clock() + self._job.absent_after_s
        with hub.changed:
            while any(not hub.is_attached(s) and not hub.given_up(s) for s in hub.sites):
                left = deadline - hub.clock()
                if left <= 0:
                    break
                hub.raise_if_stale()
                hub.changed.wait(min(left, 1.0))

    def describe(self) -> None:
        """Asks for all but histograms; sites that do not answer are absent or failed.

        Raises:
            NotEnoughSites: fewer sites have answered than the job asks for.
            ConfigurationError: no site has any of the splits or of the features, or none can group
                by the column.
        """
        there = self._fed.sites
        if there:
            # While the sites are at work, this process imports what the report needs.
            threading.Thread(target=prepare, name="pictures", daemon=True).start()
            self._ask("describe", self._question, there)
        for site in self._fed.hub.sites:
            waited = f"it had not joined within {self._job.absent_after_s:g} s"
            self._gathered.missing(site, self._fed.hub.given_up(site), waited)
        self._check_enough(len(there))
        self._check_splits()
        self._check_features()
        self._check_group_by()
        self._note_ranges()

    def count(self) -> None:
        """Asks for histograms, on ranges that all sites share."""
        earlier = {} if self.earlier is None else self.earlier.ranges()
        ranges = self._gathered.ranges(self._job.ranges, earlier)
        sites = self._gathered.incomplete(ranges)
        if sites and not (ranges and ranges.keys() <= self._job.ranges.keys()):  # else it is done
            question = self._question.model_copy(update={"ranges": ranges})
            self._ask("count", question, sites)

    def refine(self) -> bool:
        """Asks for counts between further edges, if that brings the quantiles' bounds closer.

        Returns:
            Whether it has asked.
        """
        if self._refinements >= _MOST_REFINEMENTS:
            return False
        found = self._gathered.to_refine(self._about.quantiles, deviations(self._gathered), _PARTS)
        edges = {
            split: {
                name: edges
                for name, edges in by_column.items()
                if self._edges.get((split, name)) != edges  # else policies allow no finer
            }
            for split, by_column in found.items()
        }
        edges = {split: by_column for split, by_column in edges.items() if by_column}
        if not edges:
            return False
        self._refinements += 1
        for split, by_column in edges.items():
            self._edges |= {(split, name): its for name, its in by_column.items()}
        question = self._question.model_copy(update={"ranges": {}, "edges": edges})
        self._ask("refine", question, self._gathered.sites)
        return True

    def result(self) -> Statistics:
        """Returns what the sites have answered, merged."""
        return statistics_of(self._gathered, self._about)

    def _ask(self, kind: str, question: Question, sites: Sequence[str]) -> None:
        self._round += 1
        replies = self._fed.broadcast(
            kind, sites=list(sites), round=self._round, quorum=0, config=question.config(),
            same_tensors=False,
        )  # fmt: skip
        log = get_run_logger()
        for reply in replies:
            if isinstance(reply, SiteFailure):
                self._gathered.fail(reply.site, kind, reply.reason)
                continue
            try:
                answer, fine = answers_in(reply.blobs, question, kind)
            except UpdateRejected as error:
                log.warning("site %s: %s", reply.site, error)
                self._gathered.fail(reply.site, kind, str(error))
                continue
            if kind == "refine":
                self._gathered.refine(reply.site, answer)
            else:
                self._gathered.add(reply.site, answer, fine)

    def _check_enough(self, asked: int) -> None:
        answered, states = self._gathered.sites, self._gathered.states
        needed = max(1, self._job.updates_needed(max(asked, 1)))
        if len(answered) < needed:
            others = _alike(
                (site, f"{state.state}, {state.reason}")
                for site, state in sorted(states.items())
                if state.state != "answered"
            )
            more = f"; and {len(others) - _REASONS} more" if len(others) > _REASONS else ""
            raise NotEnoughSites(
                f"{len(answered)} of the {needed} sites that the job needs have answered. "
                f"{'; '.join(others[:_REASONS])}{more}"
            )

    def _check_features(self) -> None:
        wanted, there = self._job.features, self._gathered.kinds()
        if wanted and not set(wanted) & there.keys():
            result = self.result()
            raise ConfigurationError(
                f"no site has any of the features {', '.join(wanted)} in the dataset "
                f"{self._job.dataset!r}. {'; '.join(result.withheld[:_REASONS])}"
            )

    def _check_splits(self) -> None:
        wanted = self._job.splits
        if wanted and not set(wanted) & set(self._gathered.all_splits()):
            reasons = _alike(
                (site, kept.reason)
                for site in self._gathered.sites
                for kept in self._gathered.withheld.get(site, [])
            )
            raise ConfigurationError(
                f"no site has any of the splits {', '.join(wanted)} in the dataset "
                f"{self._job.dataset!r}. {'; '.join(reasons[:_REASONS])}"
            )

    def _check_group_by(self) -> None:
        name = self._job.group_by
        # As sites say it of the column itself; what a policy withholds fails no job.
        begins = (f"there is no column {name!r}", f"column {name!r} holds")
        found = [
            (site, _reason(part.withheld, "groups"))
            for site in self._gathered.sites
            for part in self._gathered.splits[site].values()
        ]
        if name is not None and found and all(why.startswith(begins) for _, why in found):
            raise ConfigurationError(
                f"no site can group the dataset {self._job.dataset!r} by {name!r}. "
                f"{'; '.join(_alike(found)[:_REASONS])}"
            )

    def _note_ranges(self) -> None:
        kinds, features = self._gathered.kinds(), self._job.features
        for name in self._job.ranges:
            if name in kinds or self._is_withheld(name):
                continue
            why = "which no site has"
            if features is not None and name not in features:
                why = "which is not among the features"
            note = f"ranges name {name!r}, {why}. {close(name, kinds)}".strip()
            self._gathered.notes.append(note)
            get_run_logger().warning("%s", note)

    def _is_withheld(self, column: str) -> bool:
        return any(
            _reason(part.withheld, f"column {column!r}")
            for of_site in self._gathered.splits.values()
            for part in of_site.values()
        )


def _reason(withheld: Sequence[Withheld], what: str) -> str:
    return next((kept.reason for kept in withheld if kept.what == what), "")


def _alike(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Returns a line for each reason, with the sites that give it."""
    sites_by_reason: dict[str, list[str]] = {}
    for site, reason in reasons:
        sites = sites_by_reason.setdefault(reason, [])
        if site not in sites:
            sites.append(site)
    return [f"{_named(sites)}: {reason}" for reason, sites in sites_by_reason.items()]


def _named(sites: Sequence[str]) -> str:
    if len(sites) <= _SITES_NAMED:
        return ", ".join(sites)
    named = sites[: _SITES_NAMED - 1]
    return f"{', '.join(named)} and {len(sites) - len(named)} more"
