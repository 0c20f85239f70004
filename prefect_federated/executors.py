"""What a site runs: executors, written by data scientists, named by their import path.

Two forms. A function for each kind of site task::

    @executor
    def train(model: Tensors, site: Site) -> Update: ...

or a loop, three lines in an existing training script::

    @executor
    def main() -> None:
        for task in site_tasks():
            ...                                  # train from task.model
            task.reply(model, weight=n, metrics={"loss": loss})

A job names either the module ("my_package.heart": all its executors, each for the site task of its
own name) or one object in it ("my_package.heart:main"). Only what is marked with `@executor`, or is
an `Executors` object, is ever called: an import path alone runs no function.
"""

import importlib
import inspect
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from prefect_federated.errors import ConfigurationError, ExecutorNotFound, FederatedError, JobEnded
from prefect_federated.messages import (
    JsonValue,
    NoStream,
    Note,
    Stream,
    Tensors,
    Update,
)

Function = TypeVar("Function", bound=Callable[..., object])
TaskFunction = Callable[[Tensors, "Site"], Update]
LoopFunction = Callable[[], None]

_MARK = "__federated_executor__"

_log = logging.getLogger("prefect_federated.site")


@dataclass(frozen=True)
class Site:
    """What an executor knows about where and for what it runs.

    Args:
        name: The site's name, as in its certificate.
        data: The folder of the site's own data; nothing in it is ever sent by the framework.
        state: A folder of this job at this site, kept across rounds and restarts.
        config: The job's settings for executors (learning rate, local epochs, ...).
        seed: The job's seed mixed with the site's name: the same in every run, different by site.
        round: The round of the current site task, counted from 1; 0 outside rounds.
        log: A logger whose lines stay at the site.
        kind: The kind of the current site task, such as "train"; empty outside of one.
        stream: Where `log_metrics` and `progress` go.
    """

    name: str
    data: Path
    state: Path
    config: Mapping[str, JsonValue] = field(default_factory=dict)
    seed: int = 0
    round: int = 0
    log: logging.Logger = _log
    kind: str = ""
    stream: Stream = field(default_factory=NoStream)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends numbers to the server while the site works, such as the loss of each epoch.

        Any thread may call it; it returns at once and never raises. The server keeps them as curves
        by site; what counts for the round are the metrics of the `Update`. Too many are thinned:
        the oldest are dropped, and the server is told how many.

        Args:
            metrics: Name -> number, which need not be finite; nothing else leaves the site.
            step: The point on the curves' axis, such as the epoch or the batch.

        >>> site = Site("hospital-a", Path("data"), Path("state"))
        >>> site.log_metrics({"loss": 0.25}, step=3)  # outside a job it goes nowhere
        """
        try:
            numbers = {str(name): float(value) for name, value in metrics.items()}
            at = None if step is None else int(step)
        except Exception as error:  # a user's own objects: no reason to lose a round's training
            self.log.warning("log_metrics was given what is no number, and drops it: %s", error)
            return
        if numbers:
            self.stream.tell(Note(time.time(), numbers, at, None, self.kind, self.round))

    def progress(self, done: float, total: float, unit: str = "epoch") -> None:
        """Tells the server how far this site task has come; any thread, at once, never raises.

        Args:
            done: How much is done, from 0 to `total`.
            total: How much there is to do, above 0.
            unit: Of what.
        """
        try:
            so_far, all_of_it = float(done), float(total)
        except Exception as error:
            self.log.warning("progress was given what is no number, and drops it: %s", error)
            return
        if 0 <= so_far < math.inf and 0 < all_of_it < math.inf:
            far = so_far, all_of_it, str(unit)
            self.stream.tell(Note(time.time(), {}, None, far, self.kind, self.round))
        else:
            self.log.warning("progress of %s out of %s is none, and is dropped", done, total)

    def number(self, key: str, default: float) -> float:
        """Returns the number that the job's config gives for `key`.

        Raises:
            ConfigurationError: the value is not a number.
        """
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"config {key!r} is {value!r}; it must be a number.")
        return value


def site_seed(seed: int, site: str) -> int:
    """Returns the seed of one site: the job's seed mixed with the site's name, 32 bits."""
    return zlib.crc32(site.encode(), seed & 0xFFFFFFFF)


_endings: dict[Path, list[Callable[[], None]]] = {}  # by the site's folder for the job


def at_the_end(site: Site, ending: Callable[[], None]) -> None:
    """Has something ended when the job ends at this site, however it ends, such as a thread.

    Args:
        site: The site.
        ending: Called once; what it raises is logged at the site.
    """
    _endings.setdefault(site.state, []).append(ending)


def end_sites(folder: Path) -> None:
    """Ends what was left to the end of the job, at the sites whose state is in a folder.

    Args:
        folder: A site's state folder, or one with sub-folders of that kind.
    """
    for state in [known for known in _endings if folder in (known, *known.parents)]:
        for ending in _endings.pop(state):
            try:
                ending()
            except Exception:  # the boundary to a user's code
                _log.exception("what was to be ended with the job could not be")


class Executors(Protocol):
    """An object that holds one function for each kind of site task, such as an adapter."""

    def federated_executors(self) -> Mapping[str, TaskFunction]:
        """Returns kind of site task -> function."""
        ...


@dataclass(frozen=True)
class LoadedExecutor:
    """An executor found by its import path: functions by kind of site task, or a loop."""

    path: str
    functions: Mapping[str, TaskFunction] = field(default_factory=dict)
    loop: LoopFunction | None = None

    def function(self, kind: str) -> TaskFunction:
        """Returns the function for one kind of site task.

        Raises:
            ExecutorNotFound: this executor has no such function.
        """
        if kind not in self.functions:
            known = ", ".join(sorted(self.functions)) or "none"
            raise ExecutorNotFound(
                f"executor {self.path!r} has no function for the site task {kind!r} (it has: "
                f"{known}). Define `@executor def {kind}(model, site)` there."
            )
        return self.functions[kind]


def executor(function: Function) -> Function:
    """Marks a function as an executor: `(model, site) -> Update`, or a loop without parameters.

    >>> @executor
    ... def train(model: Tensors, site: Site) -> Update:
    ...     return Update(model, weight=1)
    """
    setattr(function, _MARK, True)
    return function


def load_executor(path: str) -> LoadedExecutor:
    """Imports an executor by its path, "package.module" or "package.module:name".

    Raises:
        ExecutorNotFound: the module does not import, or there is no executor at that name.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a __main__ guard may exit
        raise ExecutorNotFound(
            f"executor {path!r}: `import {module_name}` failed here with "
            f"{type(error).__name__}: {error}. Install its package at this site, or name its "
            "folder with --code when the site starts."
        ) from error
    if not name:
        found = {
            key: value
            for key, value in vars(module).items()
            if _is_marked(value) and _takes_parameters(value)
        }
        if not found:
            raise ExecutorNotFound(
                f"executor {path!r}: the module marks no function `(model, site)` with @executor. "
                f"Name a loop or an object as '{module_name}:name'."
            )
        return LoadedExecutor(path, functions=found)
    target = getattr(module, name, None)
    if target is None:
        raise ExecutorNotFound(f"executor {path!r}: module {module_name!r} has no {name!r}.")
    if hasattr(target, "federated_executors"):
        return LoadedExecutor(path, functions=dict(target.federated_executors()))
    if not _is_marked(target):
        raise ExecutorNotFound(
            f"executor {path!r}: {name!r} is not marked with @executor, so it is not called."
        )
    if _takes_parameters(target):
        return LoadedExecutor(path, functions={target.__name__: target})
    return LoadedExecutor(path, loop=target)


def _is_marked(value: object) -> bool:
    return getattr(value, _MARK, None) is True  # a mock or a proxy has any attribute, but not True


def _takes_parameters(function: Callable[..., object]) -> bool:
    return bool(inspect.signature(function).parameters)


class Link(Protocol):
    """A site's side of the connection to a job's controller, as the transport gives it."""

    def attach(self, kinds: Sequence[str]) -> None:
        """Introduces the site to the controller, with the kinds of site task that it can do."""
        ...

    def receive(self) -> "ReceivedTask":
        """Waits for the next site task.

        Raises:
            JobEnded: there will be none.
        """
        ...

    def reply(self, task: "ReceivedTask", update: Update) -> None:
        """Sends the task's update and keeps it until the controller has acknowledged it."""
        ...

    def fail(self, task: "ReceivedTask", error: BaseException) -> None:
        """Reports that the task failed: the error's type and the first line of its message."""
        ...


@dataclass(frozen=True)
class ReceivedTask:
    """One site task as it arrived: its id, kind ("train", "evaluate", ...), round and model.

    What the site says while it works on it goes to its `stream`.
    """

    id: str
    kind: str
    round: int
    model: Tensors
    config: Mapping[str, JsonValue] = field(default_factory=dict)
    stream: Stream = field(default_factory=NoStream)


class SiteTask:
    """One site task in the loop form: train from `model`, then call `reply`."""

    def __init__(self, site: Site, received: ReceivedTask, link: Link) -> None:
        self.site = site
        self.is_answered = False
        self._received = received
        self._link = link

    @property
    def kind(self) -> str:
        """The kind of site task, such as "train"."""
        return self._received.kind

    @property
    def round(self) -> int:
        """The round, counted from 1."""
        return self._received.round

    @property
    def model(self) -> Tensors:
        """The global model; its arrays are read-only."""
        return self._received.model

    def reply(
        self,
        model: Tensors,
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        metrics_weight: float | None = None,
        buffers: Sequence[str] = (),
    ) -> None:
        """Sends the trained tensors, their weight (examples) and metrics to the controller.

        Args as those of `Update`.
        """
        update = Update(
            model,
            weight=weight,
            metrics=metrics or {},
            metrics_weight=metrics_weight,
            buffers=tuple(buffers),
        )
        self._link.reply(self._received, update)
        self.is_answered = True


@dataclass
class _Running:
    site: Site
    link: Link
    end: JobEnded | None = None


_running: ContextVar[_Running | None] = ContextVar("prefect_federated_site", default=None)


def site_tasks(
    initial: Tensors | None = None, kinds: Sequence[str] = ("train",)
) -> Iterator[SiteTask]:
    """Yields the site tasks of the running job, in an executor of the loop form.

    Ends when the job ends. A task that is left without a reply when the next one is asked for is
    reported as failed.

    Args:
        initial: The model's tensors before training, given to the controller when it asks for the
            initial model.
        kinds: Kinds of site task that the loop does; it can tell them apart by `task.kind`.

    Raises:
        ConfigurationError: called outside a job.
    """
    running = _running.get()
    if running is None:
        raise ConfigurationError(
            "site_tasks() gives tasks only inside a job: name this function as the job's "
            "executor ('module:function') instead of running the script by hand."
        )
    site, link = running.site, running.link
    link.attach((*kinds, "initialize") if initial is not None else tuple(kinds))
    while True:
        try:
            received = link.receive()
        except JobEnded as end:
            running.end = end
            return
        if received.kind == "initialize":
            link.reply(received, Update(initial or {}))
            continue
        task = SiteTask(task_site(site, received), received, link)
        yield task
        if not task.is_answered:
            link.fail(received, ConfigurationError("the executor's loop gave no reply"))
        del task, received  # before the next one comes: each holds a model


def task_site(site: Site, task: ReceivedTask) -> Site:
    """Returns the site as one task sees it: with its kind, its round, its config and its stream."""
    config = {**site.config, **task.config}
    return replace(site, round=task.round, config=config, kind=task.kind, stream=task.stream)


def run_task(loaded: LoadedExecutor, site: Site, link: Link, task: ReceivedTask) -> None:
    """Runs one site task of the function form and sends its update, or its failure.

    The traceback of an executor that raises is logged at the site and stays there; the errors of
    this package say in one line what to do, and are logged as that.
    """
    started = time.monotonic()
    try:
        update = loaded.function(task.kind)(task.model, task_site(site, task))
        if not isinstance(update, Update):
            raise ConfigurationError(
                f"executor {loaded.path!r} returned {type(update).__name__} for the site task "
                f"{task.kind!r}; return an Update(tensors, weight=..., metrics=...)."
            )
    except FederatedError as error:
        site.log.error("site task %s of round %d failed: %s", task.kind, task.round, error)
        link.fail(task, error)
        return
    except Exception as error:
        site.log.exception("site task %s of round %d failed", task.kind, task.round)
        link.fail(task, error)
        return
    site.log.info("round %d: %s took %.2f s", task.round, task.kind, time.monotonic() - started)
    link.reply(task, update)


def serve(loaded: LoadedExecutor, site: Site, link: Link) -> None:
    """Runs a job's site tasks until the job ends.

    Raises:
        JobEnded: always at the end; its `outcome` says how.
        Exception: what a loop raised.
    """
    if loaded.loop is None:
        link.attach(tuple(loaded.functions))
        try:
            while True:
                run_task(loaded, site, link, link.receive())
        finally:
            end_sites(site.state)
    running = _Running(site, link)
    token = _running.set(running)
    try:
        loaded.loop()
    finally:
        _running.reset(token)
    raise running.end or ConfigurationError(
        f"executor {loaded.path!r}: the loop returned before the job ended. Leave the loop over "
        "site_tasks() only at its end."
    )
