"""Where a site's notes wait: bounds, order, how often they go out, and who waits for whom."""

import logging
import threading
import time

import pytest

from prefect_federated.messages import Note
from prefect_federated.transport.note_gate import Allowance
from prefect_federated.transport.notepad import POINTS_KEPT, Courier, Notepad
from prefect_federated.transport.notes import LARGEST_STEP, NAMES
from prefect_federated.transport.signals import SiteNotes
from tests.agents.network import eventually
from tests.transport.trial import Clock


class Server:
    """Takes notes, or not."""

    def __init__(self) -> None:
        self.got: list[SiteNotes] = []
        self.at: list[float] = []
        self.is_there = True

    def deliver(self, notes: SiteNotes) -> bool:
        if self.is_there:
            self.got.append(notes)
            self.at.append(time.monotonic())
        return self.is_there

    @property
    def steps(self) -> list[int | None]:
        return [note.step for portion in self.got for note in portion.notes]


def loss(step: int, value: float = 0.5) -> Note:
    return Note(float(step), {"loss": value}, step)


def test_notes_go_out_in_their_order_and_the_last_ones_when_the_pad_is_closed() -> None:
    server = Server()
    pad = Notepad("1.1", deliver=server.deliver)
    pad.tell(loss(1))
    pad.tell(loss(2))
    assert not pad.send()
    pad.tell(loss(3))
    (last,) = pad.close()
    assert server.steps == [1, 2]
    assert [note.step for note in last.notes] == [3]
    pad.tell(loss(4))
    assert pad.close() == []


def test_what_cannot_be_sent_is_kept_and_the_oldest_dropped_and_counted() -> None:
    server = Server()
    server.is_there = False
    pad = Notepad("1.1", deliver=server.deliver)
    for step in range(POINTS_KEPT + 500):
        pad.tell(loss(step))
        if step % 1000 == 0:
            assert pad.send()  # there is more to send
    server.is_there = True
    for portion in pad.close():
        server.deliver(portion)
    assert server.steps == list(range(500, POINTS_KEPT + 500))
    assert [portion.dropped for portion in server.got] == [500] + [0] * (len(server.got) - 1)


def test_the_bound_is_on_numbers_not_on_notes() -> None:
    pad = Notepad("1.1")
    metrics = {f"m{number}": 1.0 for number in range(250)}
    for step in range(100):
        pad.tell(Note(0.0, metrics, step))
    portions = pad.close()
    kept = sum(portion.points for portion in portions)
    assert kept == POINTS_KEPT
    assert kept + portions[0].dropped == 25_000


def test_of_progress_only_the_newest_is_kept() -> None:
    server = Server()
    server.is_there = False
    pad = Notepad("1.1", deliver=server.deliver)
    for done in range(1, 50):
        pad.tell(Note(float(done), progress=(done, 50, "batch\n")))
        pad.send()
    server.is_there = True
    assert not pad.send()
    ((note,),) = [portion.notes for portion in server.got]
    assert note.progress == (49, 50, "batch ")


def test_an_allowance_thins_what_a_site_sends_and_says_so() -> None:
    clock, server = Clock(), Server()
    pad = Notepad("1.1", deliver=server.deliver, allowance=Allowance(100, 10, clock))
    for step in range(300):
        pad.tell(loss(step))
    assert pad.send()
    assert server.steps == list(range(100))
    clock.now += 3
    (last,) = pad.close()
    assert [note.step for note in last.notes] == list(range(270, 300))
    assert last.dropped == 170


def test_waiting_for_a_connection_costs_no_allowance() -> None:
    server = Server()
    server.is_there = False
    pad = Notepad("1.1", deliver=server.deliver, allowance=Allowance(100, 0, Clock()))
    for step in range(80):
        pad.tell(loss(step))
    for _ in range(10):
        pad.send()
    server.is_there = True
    pad.send()
    assert server.steps == list(range(80))


def test_what_cannot_travel_is_left_out_and_said_once_at_the_site(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    pad = Notepad("1.1")
    pad.tell(Note(0.0, {"two\nlines": 1.0, "loss": 2.0, "": 3.0, "x" * 201: 4.0}, 1))
    pad.tell(Note(0.0, {"loss": 3.0}, LARGEST_STEP + 1))
    ((note,),) = [portion.notes for portion in pad.close()]
    assert note.metrics == {"loss": 2.0}
    assert len(caplog.records) == 1
    assert "the metric 'two\\nlines' is left out" in caplog.text


def test_a_site_has_so_many_names_of_metrics_over_all_its_tasks() -> None:
    names: set[str] = set()
    first, second = Notepad("1.1", names=names), Notepad("1.2", names=names)
    first.tell(Note(0.0, {f"m{number}": 1.0 for number in range(NAMES - 1)}))
    second.tell(Note(0.0, {"m1": 1.0, "new": 2.0, "newer": 3.0}))
    ((note,),) = [portion.notes for portion in second.close()]
    assert note.metrics == {"m1": 1.0, "new": 2.0}


# The courier


def test_nothing_is_started_for_a_site_that_says_nothing() -> None:
    before = threading.active_count()
    courier = Courier()
    assert Notepad("1.1", courier).close() == []
    assert threading.active_count() == before
    courier.close()


def test_notes_go_out_at_once_and_then_no_more_often_than_they_may() -> None:
    server, courier = Server(), Courier(every_s=0.2)
    pad = Notepad("1.1", courier, server.deliver)
    began = time.monotonic()
    step = 0
    while len(server.got) < 4:
        pad.tell(loss(step := step + 1))
        assert time.monotonic() - began < 20
    courier.close()
    assert server.at[-1] - server.at[0] >= 3 * 0.2 * 0.95
    steps = [step for step in server.steps if step is not None]
    assert steps[0] == 1
    assert steps == sorted(set(steps))


def test_who_sends_slowly_keeps_nobody_from_speaking() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def deliver(notes: SiteNotes) -> bool:
        begun.set()
        return go_on.wait(20)

    courier = Courier()
    pad = Notepad("1.1", courier, deliver)
    pad.tell(loss(1))
    assert begun.wait(20)
    for step in range(2, 1000):
        pad.tell(loss(step))  # would wait for ever, if it waited
    go_on.set()
    (last,) = pad.close()
    assert [note.step for note in last.notes][-1] == 999
    courier.close()


def test_the_last_notes_wait_for_those_that_are_being_sent() -> None:
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def deliver(notes: SiteNotes) -> bool:
        begun.set()
        assert go_on.wait(20)
        order.append("sent")
        return True

    def close() -> None:
        pad.close()
        order.append("closed")

    courier = Courier()
    pad = Notepad("1.1", courier, deliver)
    pad.tell(loss(1))
    assert begun.wait(20)
    closing = threading.Thread(target=close)
    closing.start()
    closing.join(0.2)  # time enough to close, if it did not wait
    go_on.set()
    closing.join(20)
    courier.close()
    assert order == ["sent", "closed"]


def test_a_delivery_that_fails_ends_neither_the_courier_nor_the_site(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()

    def broken(notes: SiteNotes) -> bool:
        raise ZeroDivisionError("on the way")

    courier = Courier(every_s=0.01)
    Notepad("1.1", courier, broken).tell(loss(1))
    Notepad("1.2", courier, server.deliver).tell(loss(2))
    eventually(lambda: server.got, "the other pad's notes")
    courier.close()
    assert "notes could not be sent" in caplog.text
