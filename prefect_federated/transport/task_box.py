"""Where a site task waits for the site's executor: one at most, whatever the executor is at."""

import threading
from collections.abc import Callable

from prefect_federated.errors import FederatedError
from prefect_federated.messages import Message


class TaskBox:
    """Holds the newest site task that the executor has not taken yet, or why there will be none.

    A slow executor must not make the site hold the models of all that it was asked meanwhile.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._task: Message | None = None
        self._end: FederatedError | None = None

    def put(self, task: Message) -> None:
        """Puts a site task in, in the place of an older one."""
        with self._changed:
            self._task = task
            self._changed.notify_all()

    def end(self, end: FederatedError) -> None:
        """Makes `take` raise this from now on."""
        with self._changed:
            self._task, self._end = None, end
            self._changed.notify_all()

    def keep_if(self, is_wanted: Callable[[str], bool]) -> None:
        """Empties the box if its site task, by its id, is not wanted."""
        with self._changed:
            if self._task is not None and not is_wanted(str(self._task.header.get("id"))):
                self._task = None

    def take(self) -> Message:
        """Waits for a site task and takes it out.

        Raises:
            FederatedError: there will be none.
        """
        with self._changed:
            while self._task is None and self._end is None:
                self._changed.wait()
            if self._end is not None:
                raise self._end
            assert self._task is not None
            task, self._task = self._task, None
            return task
