"""The progress of `prefect-federated simulate` in a terminal."""

import io

from rich.console import Console

from prefect_federated.cli.progress import showing_progress
from prefect_federated.messages import JsonValue
from prefect_federated.transport.signals import Moment


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_a_terminal_shows_the_round_the_sites_that_answered_and_their_metric() -> None:
    terminal = console(is_terminal=True)
    with showing_progress(terminal) as progress:
        assert progress is not None
        watcher = progress.watcher(20)
        for _ in range(3):
            watcher.asked("train", 7)
        watcher.answered("train", 7, {"metrics": {"loss": 0.5}})
        watcher.answered("train", 7, {"metrics": {"loss": 0.25}})
        watcher.answered("train", 7, {"error": "no rows"})
        watcher.answered("train", 6, {"metrics": {"loss": 99.0}})  # it came late
    last = shown(terminal)
    for part in ("round 7/20", "3/3 sites", "1 failed", "loss 0.375"):
        assert part in last


def said(site: str, round: int = 1, **detail: JsonValue) -> Moment:
    name = "progressed" if "done" in detail else "metrics_logged"
    return Moment(name, site, round, {"kind": "train", **detail})


def test_each_site_at_work_has_a_line_until_it_has_answered() -> None:
    terminal = console(is_terminal=True)
    with showing_progress(terminal) as progress:
        assert progress is not None
        for _ in range(2):
            progress.asked("train", 1)
        progress.told(said("cleveland", done=2.0, total=5.0, unit="epoch"))
        progress.told(said("cleveland", metrics={"train_loss": 0.31, "other": "nan"}))
        progress.told(said("hungary", round=7, done=1.0, total=5.0, unit="epoch"))  # no such round
        progress.told(said("hungary", metrics={"train_loss": "inf"}))
        assert len(progress._lines) == 2
        progress._progress.refresh()
        progress.told(Moment("update_received", "hungary", 1, {"kind": "train", "metrics": {}}))
        assert list(progress._lines) == ["cleveland"]
        progress.asked("train", 2)
        assert not progress._lines
    for part in ("cleveland", "epoch 2/5", "train_loss 0.31", "train_loss inf"):
        assert part in shown(terminal)
    assert "epoch 1/5" not in shown(terminal)


def test_of_many_sites_at_work_the_number_is_shown() -> None:
    terminal = console(is_terminal=True)
    with showing_progress(terminal) as progress:
        assert progress is not None
        for number in range(9):
            progress.asked("train", 1)
            progress.told(said(f"site-{number}", done=1.0, total=5.0, unit="epoch"))
        assert not progress._lines
    assert "9 at work" in shown(terminal)


def test_where_there_is_no_terminal_nothing_is_written() -> None:
    file = console(is_terminal=False)
    with showing_progress(file) as progress:
        assert progress is None
    assert shown(file) == ""
