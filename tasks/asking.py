"""How a job's calls are made: of which sites, on which terms, through which filters."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from prefect_federated.errors import (
    ConfigurationError,
    ExecutorNotFound,
    JobEnded,
    QuorumNotReached,
)
from prefect_federated.messages import JsonValue, Message, Tensors
from prefect_federated.tasks.choosing import Draw, Rule, Sites, among
from prefect_federated.tasks.events import Events
from prefect_federated.tasks.parameters import JobParameters
from prefect_federated.tasks.replies import Replies
from prefect_federated.tasks.report import Reporter
from prefect_federated.tasks.round_report import RoundReport
from prefect_federated.tasks.server_filters import ServerFilters
from prefect_federated.tasks.site_tasks import observe
from prefect_federated.tasks.terms import Terms, call_terms, check
from prefect_federated.tasks.turns import Turns
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import Refusal
from prefect_federated.transport.waiting import Call

_NAMED = 10  # sites that a message names at most


@dataclass(frozen=True)
class Question:
    """What is asked of whom.

    Args:
        kind: The site task.
        model: Tensors that go to each site.
        sites: Sites that are asked, counted and waited for.
        trials: Sites that are left out at present and are tried again.
    """

    kind: str
    model: Tensors | None
    sites: Sequence[str]
    trials: Sequence[str] = ()


class Asker:
    """Makes the calls of one job."""

    def __init__(
        self,
        job: JobParameters,
        hub: Hub,
        filters: ServerFilters,
        reporter: Reporter,
        events: Events,
    ) -> None:
        self.job = job
        self.hub = hub
        self._filters = filters
        self._reporter = reporter
        self._events = events
        self._endings: list[Callable[[], None]] = []
        self._is_closed = False
        self._last_refusal: Refusal | None = None
        self._turns = Turns(hub, job.lost_after_s)

    def choose(self, kind: str, sites: Sites, round: int) -> tuple[list[str], list[str]]:
        """Returns the sites to ask, and sites that are left out and are tried again beside them.

        A rule chooses among the sites that can be reached and are not left out; it is asked once
        more for those that are tried again, so that these take nobody's place. Where it finds
        nobody but sites that are left out, these are asked as all others are. Sites that are named
        are asked whether they are left out or not.

        Raises:
            QuorumNotReached: no site is connected, or none is chosen.
            ConfigurationError: a site that is not one of the job's.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        if sites is None or callable(sites):
            asked, trials = self._draw(kind, sites, round)
        else:
            asked, trials = list(dict.fromkeys(sites)), []
            self._check_known(kind, asked)
        able = [site for site in asked if self.hub.can(site, kind)]
        if asked and not able:
            raise ExecutorNotFound(
                f"executor {self.job.executor!r} does no site task {kind!r} at {_named(asked)}. "
                f"Define `@executor def {kind}(model, site)` there."
            )
        if not able:
            raise self._nobody(kind, round, is_choice=bool(sites))
        return able, trials

    def _draw(self, kind: str, rule: Rule | None, round: int) -> tuple[list[str], list[str]]:
        hub = self.hub

        def chosen(there: Sequence[str]) -> list[str]:
            draw = Draw(there, round, self.job.seed, hub.labels, hub.weight)
            return list(among(rule, draw)) if there else []

        if asked := chosen(hub.reachable(self.job.lost_after_s)):
            return asked, chosen(hub.trials(kind))
        return chosen([site for site in hub.attached() if hub.left_out(site)]), []

    def _nobody(self, kind: str, round: int, is_choice: bool) -> QuorumNotReached:
        hub = self.hub
        left_out = [f"{site} is {hub.left_out(site)}" for site in hub.sites if hub.left_out(site)]
        there = hub.reachable(self.job.lost_after_s)
        if is_choice and there:
            why = "none is chosen of those that are connected"
        elif left_out:
            why = f"no site is connected that is not left out. {_named(left_out, '; ')}"
        else:
            why = "no site is connected"
        return QuorumNotReached(
            f"round {round}, {kind}: {why.rstrip('.')}. Look at the sites' runs (join/<site>) in "
            "the Prefect UI for why sites left, and at the call's own choice."
        )

    def idle(self, kind: str, at_work: Collection[str]) -> list[str]:
        """Returns the sites that can be given a site task now; see `Federation.idle`."""
        free = None if self.job.in_flight is None else max(self.job.in_flight - len(at_work), 0)
        idle = self._turns.take(kind, at_work, free)
        if not idle and not at_work:
            reachable = self.hub.reachable(self.job.lost_after_s)
            if not any(self.hub.can(site, kind) for site in reachable):
                self.choose(kind, reachable, self.hub.round)  # says what is missing
        return idle

    def _check_known(self, kind: str, asked: Sequence[str]) -> None:
        unknown = sorted(site for site in asked if not self._is_known(site))
        if unknown:
            raise ConfigurationError(
                f"{kind} was asked of the sites {', '.join(unknown)}, which do not take part in "
                f"this job. Its sites are: {', '.join(self.hub.sites)}."
            )

    def _is_known(self, site: str) -> bool:
        try:
            self.hub.left_out(site)
        except KeyError:
            return False
        return True

    def ask(self, question: Question, said: Terms) -> Replies:
        """Asks the sites and returns their replies, to be read as they arrive.

        Raises:
            ConfigurationError: the call says what cannot be.
        """
        if self._is_closed:
            raise JobEnded("over", "its flow has left the federation")
        kind, round = question.kind, said.get("round", 0)
        check(kind, said)
        config: dict[str, JsonValue] = {"config": dict(said.get("config", {}))}
        message = self._filters.leaving(Message(config, question.model or {}), kind, round)
        is_alike = question.model is not None and said.get("same_tensors", kind == "train")
        expect = self._filters.expected(message, kind) if is_alike else None
        terms = call_terms(kind, said, self.job, expect)
        self.starts(kind, round, len(question.sites))
        call = self.hub.call(kind, message, question.sites, terms, question.trials)
        self._filters.note_sent(call.id, kind, message, terms.late)
        return Replies(call, observe(call), self if said.get("reported", True) else None)

    def starts(self, kind: str, round: int, sites: int) -> None:
        """Notes that sites are asked in a round."""
        self._events.asked(kind, round, sites)

    def record(
        self,
        calls: Sequence[Call],
        began_at: float,
        is_complete: bool = True,
        round: int | None = None,
    ) -> RoundReport:
        """Makes a row of the job's table from calls that have been read.

        Args:
            calls: One call, or several that make a row together.
            began_at: When the first began, in seconds since the epoch.
            is_complete: Whether they have been read to the end, and the quorum was there.
            round: The row's round; that of the calls if None.
        """
        report = RoundReport.of(calls, began_at)
        report = replace(
            report,
            round=report.round if round is None else round,
            refused=self._new_refusals(),
            left_out=[site for site in self.hub.sites if self.hub.left_out(site)],
        )
        self._reporter.round_done(report)
        if is_complete:
            self._events.answered(report.round, report.summary())
        return report

    def _new_refusals(self) -> int:
        refusals = self.hub.refusals
        last, self._last_refusal = self._last_refusal, refusals[-1] if refusals else None
        known = next((n for n, seen in enumerate(reversed(refusals)) if seen is last), None)
        return len(refusals) if known is None else known

    def at_the_end(self, ending: Callable[[], None]) -> None:
        """Has something ended when the flow leaves the federation."""
        self._endings.append(ending)

    def close(self) -> None:
        """Ends what is still open, so that no site and no observer waits for it."""
        self._is_closed = True
        for ending in self._endings:
            ending()
        self.hub.close_calls("the job's flow ended without reading the answer")


def _named(these: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(these) - _NAMED} more" if len(these) > _NAMED else ""
    return separator.join(these[:_NAMED]) + more
