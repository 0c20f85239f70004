"""The progress of `prefect-federated simulate` in a terminal."""

import io

from rich.console import Console

from prefect_federated.cli.progress import showing_progress


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_a_terminal_shows_the_round_the_sites_that_answered_and_their_metric() -> None:
    terminal = console(is_terminal=True)
    with showing_progress(terminal) as make:
        assert make is not None
        watcher = make(20)
        for _ in range(3):
            watcher.asked("train", 7)
        watcher.answered("train", 7, {"metrics": {"loss": 0.5}})
        watcher.answered("train", 7, {"metrics": {"loss": 0.25}})
        watcher.answered("train", 7, {"error": "no rows"})
        watcher.answered("train", 6, {"metrics": {"loss": 99.0}})  # it came late
    last = shown(terminal)
    for part in ("round 7/20", "3/3 sites", "1 failed", "loss 0.375"):
        assert part in last


def test_where_there_is_no_terminal_nothing_is_written() -> None:
    file = console(is_terminal=False)
    with showing_progress(file) as make:
        assert make is None
    assert shown(file) == ""
