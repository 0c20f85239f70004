"""A site's part of XGBoost's own distributed training: a thread that trains, event by event.

The thread makes XGBoost's collective calls as in any cluster. Each goes to the controller as the
answer of a site task ("start", "go_on"), and its result comes back with the next one. Between two
site tasks the thread waits. Several sites may share a process: XGBoost's communicator belongs to
its thread.
"""

import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np

from prefect_federated.adapters.xgboost.events import (
    RESULT,
    Bytes,
    CollectiveCall,
    Ended,
    Event,
    Failed,
    Gone,
    RoundDone,
    update_of,
)
from prefect_federated.errors import ConfigurationError, FederatedError
from prefect_federated.executors import Site, at_the_end
from prefect_federated.messages import JsonValue, Tensors, Update

_END_S = 60.0  # a training that computes sees only at its next call that it was ended
_REASON_LENGTH = 1000
_NOTHING: Bytes = np.zeros(0, np.uint8)


Work: TypeAlias = Callable[["Training"], Ended]


class TrainingEnded(Exception):  # no error: it unwinds a thread that is not wanted
    """The training was ended from outside."""


@dataclass(frozen=True)
class Decision:
    """What the controller says after a round.

    Args:
        keep: None to go on; else the training ends, with so many rounds in the model.
    """

    keep: int | None = None


class Training:
    """The training thread of one site in one attempt.

    Args:
        attempt: The attempt's number, which the controller gives.
        rank: This site's rank, from 0.
        sites: How many sites train together.
        load: Reads the site's rows, outside of XGBoost's communicator, and returns what trains on
            them inside; both on the thread. A matrix that is made inside is a collective call, so
            that each site has to make the same ones, whatever it has in memory already.
    """

    def __init__(self, attempt: int, rank: int, sites: int, load: Callable[[], Work]) -> None:
        self.attempt = attempt
        self.rank = rank
        self.sites = sites
        self._load = load
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Bytes | Decision | None] = queue.SimpleQueue()
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"xgboost-{rank}", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.is_alive()

    # What site tasks call

    def next_event(self) -> Event:
        """Waits for the training's next event; `Gone` when it was ended from outside."""
        return self._events.get()

    def answer(self, given: Bytes | Decision) -> None:
        """Hands over what the training waits for."""
        self._answers.put(given)

    def end(self) -> None:
        """Ends the training and waits for its thread; what it asks for from now on fails."""
        self._is_ended.set()
        self._answers.put(None)
        self._events.put(Gone())  # for a site task that waits
        self._thread.join(_END_S)

    # What the training thread calls

    def round_done(self, event: RoundDone) -> Decision:
        """Tells that a round is done, and waits for what the controller says.

        Raises:
            TrainingEnded: it was ended.
        """
        decision = self._told(event)
        if not isinstance(decision, Decision):
            raise TrainingEnded
        return decision

    def _carry(self, call: CollectiveCall) -> Bytes | None:
        result = self._told(call)
        return None if isinstance(result, Decision) else result

    def _told(self, event: Event) -> Bytes | Decision | None:
        if self._is_ended.is_set():
            return None
        self._events.put(event)
        answer = self._answers.get()
        return None if self._is_ended.is_set() else answer

    def _run(self) -> None:
        try:
            from prefect_federated.adapters.xgboost.loopback import joining

            work = self._load()
            with joining(self._carry, self.rank, self.sites):
                ended = work(self)
            self._events.put(ended if self.rank == 0 else replace(ended, booster=_NOTHING))
        except TrainingEnded:
            pass
        except FederatedError as error:
            self._events.put(Failed(str(error)[:_REASON_LENGTH]))
        except BaseException as error:  # the thread's boundary: XGBoost's own errors
            if not self._is_ended.is_set():
                self._events.put(Failed(_reason(error)))
        finally:
            self._is_ended.set()
            self._answers.put(None)  # for a call whose client has gone


_trainings: dict[str, Training] = {}  # by the site's folder for the job
_lock = threading.Lock()


def start(site: Site, load: Callable[[], Work]) -> Update:
    """Starts this site's training, which ends one that is there; answers with its first event.

    Args:
        site: The site; its config says "attempt" (a number) and "ranks" (the sites by rank).
        load: Reads the rows and returns what trains; see `Training`.

    Raises:
        ConfigurationError: this site is not among the ranks, or its xgboost cannot do it.
    """
    check_federated()
    attempt, ranks = _attempt(site), cast(list[JsonValue], site.config.get("ranks", []))
    if site.name not in ranks:
        raise ConfigurationError(
            f"site {site.name!r} was asked to train with {ranks}, among which it is not."
        )
    stop(site)
    training = Training(attempt, ranks.index(site.name), len(ranks), load)
    with _lock:
        _trainings[str(site.state)] = training
    at_the_end(site, lambda: _forget(str(site.state), training))
    return _next(site, training)


def go_on(model: Tensors, site: Site) -> Update:
    """Hands the training what it waits for, and answers with its next event.

    Args:
        model: The tensor `RESULT` after a collective call; none after a round.
        site: The site; its config says "attempt", and after a round "keep" where the training ends.
    """
    with _lock:
        training = _trainings.get(str(site.state))
    if training is None or training.attempt != _attempt(site):
        return update_of(Gone())
    keep = site.config.get("keep")
    if RESULT in model:
        training.answer(cast(Bytes, model[RESULT]))
    else:
        training.answer(Decision(keep if isinstance(keep, int) else None))
    return _next(site, training)


def stop(site: Site) -> Update:
    """Ends this site's training, if there is one."""
    with _lock:
        training = _trainings.get(str(site.state))
    if training is not None:
        _forget(str(site.state), training)
    return Update()


def check_federated() -> None:
    """Raises `ConfigurationError` if this site's XGBoost has no federated client."""
    import xgboost

    if not xgboost.build_info().get("USE_FEDERATED"):
        raise ConfigurationError(
            f"xgboost {xgboost.__version__} at this site was built without federated learning "
            "(USE_FEDERATED is off), which this flow's collective calls need. Install the wheel "
            "from PyPI (`pip install xgboost`) on Linux x86_64 or aarch64, or train with "
            "xgboost-bagging, which needs no such build."
        )


def _next(site: Site, training: Training) -> Update:
    event = training.next_event()
    if isinstance(event, Ended | Failed | Gone):
        _forget(str(site.state), training)
    if isinstance(event, Failed):
        site.log.error("xgboost's training failed: %s", event.reason)
    return update_of(event)


def _forget(place: str, training: Training) -> None:
    training.end()
    with _lock:
        if _trainings.get(place) is training:
            del _trainings[place]


def _attempt(site: Site) -> int:
    attempt = site.config.get("attempt")
    return attempt if isinstance(attempt, int) else 0


def _reason(error: BaseException) -> str:
    """Returns what an error of XGBoost's says, without its stack trace and place in the code."""
    lines = str(error).partition("Stack trace:")[0].splitlines()
    said = " ".join(line.strip() for line in lines if line.strip())
    said = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", said)
    return f"{type(error).__name__}: {said}"[:_REASON_LENGTH]
