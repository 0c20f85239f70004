"""One site task waits for the executor, never two."""

import pytest

from prefect_federated.errors import JobEnded
from prefect_federated.messages import Message
from prefect_federated.transport.task_box import TaskBox


def test_a_newer_task_takes_the_place_of_the_one_that_waits() -> None:
    box = TaskBox()
    first, second = Message({"id": "1.1"}), Message({"id": "1.2"})
    box.put(first)
    box.put(second)
    assert box.take() is second


def test_a_task_that_nobody_waits_for_is_let_go() -> None:
    box = TaskBox()
    box.put(Message({"id": "1.1"}))
    box.keep_if(lambda task: task != "1.1")
    kept = Message({"id": "1.2"})
    box.put(kept)
    box.keep_if(lambda task: task == "1.2")
    assert box.take() is kept


def test_the_end_goes_before_a_task_that_waits_and_is_told_each_time() -> None:
    box = TaskBox()
    box.put(Message({"id": "1.1"}))
    box.end(JobEnded("completed", "done"))
    for _ in range(2):
        with pytest.raises(JobEnded):
            box.take()
