"""How an executor is found by its import path, and how a site runs it."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefect_federated.errors import ConfigurationError, ExecutorNotFound, JobEnded
from prefect_federated.executors import (
    LoadedExecutor,
    ReceivedTask,
    Site,
    at_the_end,
    end_sites,
    executor,
    load_executor,
    run_task,
    serve,
    site_seed,
    site_tasks,
)
from prefect_federated.messages import Note, Tensors, Update

MODEL: Tensors = {"w": np.ones(2)}
HEADER = "from prefect_federated import Update, executor, site_tasks\n"


@pytest.fixture
def write_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Writes modules that can be imported in this test."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(HEADER + code)
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


class TrialLink:
    """A site's link whose controller is a list of tasks."""

    def __init__(self, *tasks: ReceivedTask) -> None:
        self.kinds: tuple[str, ...] = ()
        self.answers: list[tuple[str, Update | BaseException]] = []
        self._tasks = list(tasks)

    def attach(self, kinds: Sequence[str]) -> None:
        self.kinds = tuple(kinds)

    def receive(self) -> ReceivedTask:
        if not self._tasks:
            raise JobEnded("completed", "all rounds are done")
        return self._tasks.pop(0)

    def reply(self, task: ReceivedTask, update: Update) -> None:
        self.answers.append((task.id, update))

    def fail(self, task: ReceivedTask, error: BaseException) -> None:
        self.answers.append((task.id, error))


def task(number: int, kind: str = "train") -> ReceivedTask:
    return ReceivedTask(f"1.{number}", kind, number, MODEL, {"lr": 0.1 * number})


def site(tmp_path: Path) -> Site:
    return Site("site-1", tmp_path, tmp_path, {"lr": 9, "epochs": 2})


FUNCTIONS = """
@executor
def train(model, site):
    return Update(model, weight=3)

@executor
def evaluate(model, site):
    return Update(metrics={"loss": 1})

@executor
def loop():
    for task in site_tasks():
        task.reply(task.model)

def not_marked(model, site):
    raise AssertionError("an import path alone runs no function")

class Anything:
    def __getattr__(self, name):
        return True if not name.startswith("__federated") else self

proxy = Anything()
"""


def test_a_module_gives_each_of_its_executors_for_the_site_task_of_its_name(
    write_module: Callable[[str, str], None],
) -> None:
    write_module("hospital", FUNCTIONS)
    loaded = load_executor("hospital")
    assert set(loaded.functions) == {"train", "evaluate"}
    assert loaded.loop is None
    with pytest.raises(ExecutorNotFound, match=r"'statistics' \(it has: evaluate, train\)"):
        loaded.function("statistics")


def test_a_name_gives_one_function_or_one_loop(write_module: Callable[[str, str], None]) -> None:
    write_module("hospital", FUNCTIONS)
    assert set(load_executor("hospital:train").functions) == {"train"}
    assert load_executor("hospital:loop").loop is not None


def test_an_object_may_hold_the_functions(write_module: Callable[[str, str], None]) -> None:
    write_module(
        "adapter",
        "class Adapter:\n"
        "    def federated_executors(self):\n"
        "        return {'train': lambda model, site: Update(model)}\n"
        "heart = Adapter()\n",
    )
    assert set(load_executor("adapter:heart").functions) == {"train"}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_package.heart", "`import no_such_package.heart` failed here .*--code"),
        ("hospital:nothing", "has no 'nothing'"),
        ("hospital:not_marked", "'not_marked' is not marked with @executor, so it is not called"),
        ("hospital:executor", "'executor' is not marked"),
        ("os:system", "'system' is not marked"),
        ("json", "marks no function"),
        ("", "failed here"),
    ],
)
def test_a_path_to_no_executor_says_what_is_wrong(
    path: str, says: str, write_module: Callable[[str, str], None]
) -> None:
    write_module("hospital", FUNCTIONS)
    with pytest.raises(ExecutorNotFound, match=says):
        load_executor(path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (:", "SyntaxError"),
        ("import sys; sys.exit('usage: train FILE')", "SystemExit: usage: train FILE"),
    ],
)
def test_a_module_that_fails_to_import_gives_its_error(
    code: str, says: str, write_module: Callable[[str, str], None]
) -> None:
    write_module("broken", code)
    with pytest.raises(ExecutorNotFound, match=says):
        load_executor("broken")


def test_the_function_form_runs_task_after_task_until_the_job_ends(tmp_path: Path) -> None:
    seen: list[Site] = []

    def train(model: Tensors, here: Site) -> Update:
        seen.append(here)
        if here.round == 2:
            raise ValueError("no rows")
        return Update(model, weight=here.round)

    link = TrialLink(task(1), task(2), task(3), task(4, "sing"))
    with pytest.raises(JobEnded, match="all rounds are done"):
        serve(LoadedExecutor("trial", {"train": train}), site(tmp_path), link)
    assert link.kinds == ("train",)
    assert [here.config["lr"] for here in seen] == [pytest.approx(0.1 * n) for n in (1, 2, 3)]
    assert {here.config["epochs"] for here in seen} == {2}
    kinds = [type(answer) for _, answer in link.answers]
    assert kinds == [Update, ValueError, Update, ExecutorNotFound]


def test_what_was_left_to_the_end_of_a_job_ends_with_it_at_that_site_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    def broken() -> None:
        raise OSError("it is gone already")

    def train(model: Tensors, here: Site) -> Update:
        at_the_end(here, broken)
        at_the_end(here, lambda: ended.append(here.name))
        return Update(model)

    other = replace(site(tmp_path / "other"), name="other")
    at_the_end(other, lambda: ended.append("other"))
    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", {"train": train}), site(tmp_path / "own"), TrialLink(task(1)))
    assert ended == ["site-1"]
    assert "could not be" in caplog.text
    end_sites(tmp_path)
    end_sites(tmp_path)
    assert ended == ["site-1", "other"]


def test_a_traceback_stays_in_the_sites_own_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(model: Tensors, here: Site) -> Update:
        raise ValueError("row of patient 4711")

    link = TrialLink()
    run_task(LoadedExecutor("trial", {"train": train}), site(tmp_path), link, task(1))
    assert "Traceback" in caplog.text
    assert [str(answer) for _, answer in link.answers] == ["row of patient 4711"]


def test_an_error_that_says_what_to_do_is_one_line_in_the_sites_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(model: Tensors, here: Site) -> Update:
        raise ConfigurationError("there is no 'hart'. Did you mean 'heart'?")

    link = TrialLink()
    run_task(LoadedExecutor("trial", {"train": train}), site(tmp_path), link, task(1))
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage().endswith("failed: there is no 'hart'. Did you mean 'heart'?")
    assert [type(answer) for _, answer in link.answers] == [ConfigurationError]


def test_the_loop_form_gets_tasks_and_replies(tmp_path: Path) -> None:
    rounds = []

    @executor
    def loop() -> None:
        for received in site_tasks():
            rounds.append((received.round, received.kind, received.site.config["lr"]))
            received.reply(received.model, weight=5, metrics={"loss": 1.0})

    link = TrialLink(task(1), task(2))
    with pytest.raises(JobEnded) as caught:
        serve(LoadedExecutor("trial", loop=loop), site(tmp_path), link)
    assert caught.value.outcome == "completed"
    assert rounds == [(1, "train", 0.1), (2, "train", 0.2)]
    update = link.answers[0][1]
    assert isinstance(update, Update)
    assert (update.weight, update.metrics, link.kinds) == (5, {"loss": 1.0}, ("train",))


def test_a_loop_gives_the_initial_model_by_itself(tmp_path: Path) -> None:
    def loop() -> None:
        for received in site_tasks(initial=MODEL, kinds=("train", "evaluate")):
            received.reply(received.model)

    link = TrialLink(task(1, "initialize"), task(2))
    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", loop=loop), site(tmp_path), link)
    assert link.kinds == ("train", "evaluate", "initialize")
    initial = link.answers[0][1]
    assert isinstance(initial, Update)
    assert initial.tensors is MODEL
    assert len(link.answers) == 2


def test_a_task_without_a_reply_is_reported(tmp_path: Path) -> None:
    def loop() -> None:
        for received in site_tasks():
            if received.round == 2:
                received.reply(received.model)

    link = TrialLink(task(1), task(2))
    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", loop=loop), site(tmp_path), link)
    assert str(link.answers[0][1]) == "the executor's loop gave no reply"
    assert isinstance(link.answers[1][1], Update)


def test_a_loop_that_stops_before_the_job_is_an_error(tmp_path: Path) -> None:
    def loop() -> None:
        for _ in site_tasks():
            return

    with pytest.raises(ConfigurationError, match="returned before the job ended"):
        serve(LoadedExecutor("trial", loop=loop), site(tmp_path), TrialLink(task(1)))


def test_site_tasks_outside_a_job_say_how_to_run_them() -> None:
    with pytest.raises(ConfigurationError, match="name this function as the job's executor"):
        next(site_tasks())


def test_seeds_are_the_same_in_each_run_and_differ_by_site_and_job() -> None:
    assert site_seed(0, "site-1") == 1944301349
    seeds = {site_seed(seed, name) for seed in (0, 1, 2**32 - 1) for name in ("a", "b", "site-1")}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_number_of_the_config_is_a_number(tmp_path: Path) -> None:
    here = Site("a", tmp_path, tmp_path, {"lr": 0.5, "epochs": "two", "fast": True})
    assert here.number("lr", 1) == 0.5
    assert here.number("momentum", 0.9) == 0.9
    for key in ("epochs", "fast"):
        with pytest.raises(ConfigurationError, match=f"'{key}' is"):
            here.number(key, 1)


class Heard:
    """A stream that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def tell(self, note: Note) -> None:
        self.notes.append(note)


def test_what_a_task_says_goes_to_its_own_stream_with_its_kind_and_round(tmp_path: Path) -> None:
    streams = [Heard(), Heard()]
    tasks = [replace(task(number), stream=stream) for number, stream in enumerate(streams, 1)]

    def train(model: Tensors, site: Site) -> Update:
        site.log_metrics({"loss": np.float32(0.5)}, np.int64(3))  # type: ignore[dict-item, arg-type]
        site.progress(1, 4)
        return Update(model)

    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", {"train": train}), site(tmp_path), TrialLink(*tasks))
    for number, stream in enumerate(streams, 1):
        logged, progress = stream.notes
        assert (logged.kind, logged.round) == (progress.kind, progress.round) == ("train", number)
        assert (logged.metrics, logged.step, logged.progress) == ({"loss": 0.5}, 3, None)
        assert (progress.metrics, progress.progress) == ({}, (1.0, 4.0, "epoch"))
        assert 0 <= progress.time - logged.time < 60


def test_the_loop_form_speaks_through_its_tasks_site(tmp_path: Path) -> None:
    stream = Heard()

    def loop() -> None:
        for one in site_tasks():
            one.site.log_metrics({"loss": 0.5, "odd": float("nan")})
            one.reply(one.model)

    link = TrialLink(replace(task(1), stream=stream))
    with pytest.raises(JobEnded):
        serve(LoadedExecutor("trial", loop=loop), site(tmp_path), link)
    (note,) = stream.notes
    assert note.metrics["loss"] == 0.5
    assert math.isnan(note.metrics["odd"])


@pytest.mark.parametrize(
    ("metrics", "step"),
    [
        ({"loss": "high"}, None),
        ({"loss": np.zeros(2)}, None),
        ({"loss": None}, None),
        ([0.5], None),
        ({"loss": 10**400}, None),
        ({"loss": 0.5}, "first"),
        ({"loss": 0.5}, float("inf")),
    ],
)
def test_a_metric_that_is_no_number_is_said_at_the_site_and_fails_no_training(
    metrics: object, step: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Heard()
    replace(site(tmp_path), stream=stream).log_metrics(metrics, step)  # type: ignore[arg-type]
    assert stream.notes == []
    assert "log_metrics was given what is no number" in caplog.text


@pytest.mark.parametrize(
    ("done", "total"), [(1, 0), (-1, 3), (1, float("inf")), (float("nan"), 3), (None, 3)]
)
def test_progress_that_is_none_is_said_at_the_site_and_fails_no_training(
    done: float, total: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Heard()
    replace(site(tmp_path), stream=stream).progress(done, total)
    assert stream.notes == []
    assert "progress" in caplog.text


def test_a_site_without_a_stream_may_speak(tmp_path: Path) -> None:
    site(tmp_path).log_metrics({"loss": 0.5}, step=1)
    site(tmp_path).progress(1, 2)
