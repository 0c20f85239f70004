"""The three patterns in which a flow asks sites: broadcast, send, relay.

Each is called to wait (`fed.broadcast(...)`: replies to be read as they arrive) or submitted not to
(`fed.broadcast.submit(...)`: a future).
"""

from collections.abc import Sequence
from typing import Literal, Unpack, get_args

from prefect_federated.errors import ConfigurationError
from prefect_federated.messages import Tensors
from prefect_federated.tasks.asking import Asker, Question
from prefect_federated.tasks.choosing import Sites, shuffled
from prefect_federated.tasks.relay import Course, OnMissing, RelayFuture, RelayReplies
from prefect_federated.tasks.replies import Replies, ReplyFuture
from prefect_federated.tasks.terms import Terms, call_terms


class Broadcast:
    """Asks many sites for the same site task."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def __call__(
        self,
        kind: str,
        model: Tensors | None = None,
        *,
        sites: Sites = None,
        **terms: Unpack[Terms],
    ) -> Replies:
        """Asks the sites and returns their replies, to be read as they arrive.

        Args:
            kind: The site task, such as "train"; the executor's function of that name does it.
            model: Tensors that go to each site.
            sites: Names, or a rule from `choosing`; if None, all that are connected now, or were a
                moment ago, and are not left out. Those that are left out are tried again from time
                to time; named ones are asked though they are left out.
            terms: See `Terms`.

        Raises:
            QuorumNotReached: no site is connected.
            ConfigurationError: a site that is not one of the job's, or terms that cannot be.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        asked, trials = self._asker.choose(kind, sites, terms.get("round", 0))
        return self._asker.ask(Question(kind, model, asked, trials), terms)

    def submit(
        self,
        kind: str,
        model: Tensors | None = None,
        *,
        sites: Sites = None,
        **terms: Unpack[Terms],
    ) -> ReplyFuture:
        """Asks the sites as `__call__` does and returns a future."""
        return ReplyFuture(self._asker.hub, self(kind, model, sites=sites, **terms))


class Send:
    """Asks named sites; all of them must answer, unless the call says otherwise."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def __call__(
        self, kind: str, model: Tensors | None = None, *, sites: str | Sequence[str],
        **terms: Unpack[Terms],
    ) -> Replies:  # fmt: skip
        """Asks the sites and returns their replies, to be read as they arrive.

        Args:
            kind: The site task.
            model: Tensors that go to each site.
            sites: A name, or several; asked though they are left out. A site that is not connected
                is waited for, for as long as the job's `lost_after_s` says.
            terms: See `Terms`; `quorum` is all of the sites where it is not given.

        Raises:
            ConfigurationError: a site that is not one of the job's, or terms that cannot be.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        names = [sites] if isinstance(sites, str) else list(sites)
        asked, _ = self._asker.choose(kind, names, terms.get("round", 0))
        all_of_them: Terms = {"quorum": 1.0, **terms}
        return self._asker.ask(Question(kind, model, asked), all_of_them)

    def submit(
        self, kind: str, model: Tensors | None = None, *, sites: str | Sequence[str],
        **terms: Unpack[Terms],
    ) -> ReplyFuture:  # fmt: skip
        """Asks the sites as `__call__` does and returns a future."""
        return ReplyFuture(self._asker.hub, self(kind, model, sites=sites, **terms))


class Relay:
    """Asks one site after another; each gets the last one's reply as its model."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    def __call__(
        self, kind: str, model: Tensors | None = None, *, sites: Sites = None,
        order: Literal["given", "shuffled"] | Sequence[str] = "given", seed: int | None = None,
        on_missing: OnMissing = "skip", **terms: Unpack[Terms],
    ) -> RelayReplies:  # fmt: skip
        """Returns the replies in order; a site is asked when the one before has been read.

        Args:
            kind: The site task.
            model: Tensors that go to the first site.
            sites: As for broadcast.
            order: "given" (as `sites` has them, else by name), "shuffled" anew in each round, or
                the names in order, which then are the sites.
            seed: Seed of the shuffled order; the job's if None.
            on_missing: What is done when a site does not answer: "skip" goes on with the next,
                "later" asks it once more at the end, "fail" ends the relay.
            terms: See `Terms`; `timeout_s` is that of each site, and no site's update counts late.

        A site that is left out and due to be tried again is asked last. It is not counted, but the
        model of one that answers goes on as any other does.

        Raises:
            QuorumNotReached: no site is connected.
            ConfigurationError: a site that is not one of the job's, or terms that cannot be.
            ExecutorNotFound: the executor has no function for `kind`.
        """
        if on_missing not in get_args(OnMissing):
            raise ConfigurationError(
                f"{kind} was relayed with on_missing={on_missing!r}; it is one of "
                f"{', '.join(get_args(OnMissing))}."
            )
        if isinstance(order, str) and order not in ("given", "shuffled"):
            raise ConfigurationError(
                f"{kind} was relayed with order={order!r}; it is 'given', 'shuffled', or a list of "
                "sites."
            )
        asker, round = self._asker, terms.get("round", 0)
        own = call_terms(kind, terms, asker.job)
        named = None if isinstance(order, str) else list(dict.fromkeys(order))
        asked, trials = asker.choose(kind, sites if named is None else named, round)
        if order == "shuffled":
            asked = shuffled(asked, round, asker.job.seed if seed is None else seed)
        asker.starts(kind, round, len(asked))
        single: Terms = {**terms, "quorum": 0, "late_weight": 0, "reported": False}

        def hop(site: str, model: Tensors | None, timeout_s: float) -> Replies:
            return asker.ask(Question(kind, model, [site]), {**single, "timeout_s": timeout_s})

        course = Course(
            f"round {round}, {kind}", asked, trials, on_missing, own.quorum, own.timeout_s
        )
        return RelayReplies(course, model, hop, asker)

    def submit(
        self, kind: str, model: Tensors | None = None, *, sites: Sites = None,
        order: Literal["given", "shuffled"] | Sequence[str] = "given", seed: int | None = None,
        on_missing: OnMissing = "skip", **terms: Unpack[Terms],
    ) -> RelayFuture:  # fmt: skip
        """Starts the relay, which goes on by itself, and returns a future."""
        relay = self(
            kind, model, sites=sites, order=order, seed=seed, on_missing=on_missing, **terms
        )
        future = RelayFuture(self._asker.hub, relay)
        self._asker.at_the_end(future.cancel)
        return future
