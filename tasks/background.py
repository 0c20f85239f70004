"""What a job does beside its rounds: one thing at a time, and the job's end waits for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Any

from prefect.exceptions import Pause
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger


class Background:
    """The Prefect task that runs beside the flow, if any; at most one at a time."""

    def __init__(self) -> None:
        self._running: PrefectFuture[Any] | None = None
        self._abandoned = Event()

    @property
    def is_wanted(self) -> bool:
        """Whether what runs should go on; it stops early when the job is cancelled."""
        return not self._abandoned.is_set()

    def begin(self, start: Callable[[], PrefectFuture[Any]]) -> None:
        """Waits for what was begun before, then begins the next; raises what the former raised."""
        self.wait()
        self._running = start()

    def wait(self) -> None:
        """Waits for what was begun; raises what it raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _end(self, error: BaseException) -> None:
        """Ends what runs because the job ends by an error, which tells more than what it raises."""
        if not isinstance(
            error, Exception | Pause
        ):  # cancelled, or the process shall stop: at once
            self._abandoned.set()
        try:
            self.wait()
        except Pause:  # what ends the job here already; it was raised after the waiting
            pass
        except Exception as also:
            get_run_logger().warning("what ran beside the job's end failed: %s", also)


_current: ContextVar[Background | None] = ContextVar("prefect_federated_background", default=None)


def current_background() -> Background | None:
    """Returns what the running job has beside its rounds; None outside `background()`."""
    return _current.get()


@contextmanager
def background() -> Iterator[Background]:
    """Lets tasks run beside the block; its end waits for them, and fails as they do.

    Raises:
        SnapshotFailed: the last snapshot could not be written.
        StaleController: a newer attempt of the job has written snapshots already.
    """
    beside = Background()
    token = _current.set(beside)
    try:
        yield beside
        beside.wait()
    except BaseException as error:
        beside._end(error)
        raise
    finally:
        _current.reset(token)
