"""What a site keeps, sends again, and refuses."""

import numpy as np
import pytest

from prefect_federated.errors import ProtocolError
from prefect_federated.messages import Message, Note, Update
from prefect_federated.transport.session import Session
from prefect_federated.transport.signals import (
    EAGER_BYTES,
    FromSite,
    SiteNotes,
    SiteOffer,
    SitePayload,
    SiteUpdate,
)
from prefect_federated.transport.updates import message_of
from prefect_federated.wire import Encoded, Frame, Incoming, begin, encode
from tests.transport.trial import fill

SMALL, LARGE = EAGER_BYTES // 8, EAGER_BYTES // 8 + 1


def task(number: str, size: int = 4) -> tuple[Incoming, bytes]:
    encoded = encode(Frame.TASK, Message({"id": number, "kind": "train"}, {"w": np.ones(size)}))
    return begin(encoded.head), b"".join(encoded.payload)


def update(number: str, size: int) -> Encoded:
    return encode(Frame.UPDATE, message_of(number, Update({"w": np.ones(size)})))


class Site:
    """A session with what it has sent."""

    def __init__(self) -> None:
        self.session = Session("site-1", ("train",), {"region": "eu"})
        self.sent: list[FromSite] = []

    def connect(self, epoch: int = 1, wanted: tuple[str, ...] = ()) -> bool:
        self.sent = []
        self.session.connected(self.sent.append)
        return self.session.welcome(epoch, wanted)

    def get(self, number: str) -> bool:
        incoming, payload = task(number)
        self.session.task(incoming)
        fill(incoming, payload)
        return self.session.complete(incoming)


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_small_update_goes_at_once_and_a_large_one_is_offered(site: Site) -> None:
    site.connect()
    for number, size in (("1.1", SMALL), ("1.2", LARGE)):
        assert site.get(number)
        site.session.reply(number, update(number, size))
    assert [type(item) for item in site.sent] == [SiteUpdate, SiteOffer]
    site.session.go("1.2", 40)
    assert isinstance(site.sent[-1], SitePayload)
    assert site.sent[-1].offset == 40


def test_an_update_is_kept_until_it_is_acknowledged(site: Site) -> None:
    site.connect()
    site.get("1.1")
    site.session.disconnected()
    site.session.reply("1.1", update("1.1", SMALL))
    assert site.sent == []
    assert site.session.hello().holding == ("1.1",)
    for _ in range(2):
        site.connect(wanted=("1.1",))
        assert [item.id for item in site.sent] == ["1.1"]
    site.session.ack("1.1")
    assert site.session.hello().holding == ()


def test_what_the_controller_does_not_want_is_dropped(site: Site) -> None:
    site.connect()
    site.get("1.1")
    site.session.reply("1.1", update("1.1", SMALL))
    site.connect(wanted=())
    assert site.sent == []
    assert not site.session.is_wanted("1.1")


def test_a_stale_controller_is_not_obeyed(site: Site) -> None:
    assert site.connect(epoch=2)
    assert not site.connect(epoch=1)
    site.get("2.1")
    site.session.reply("2.1", update("2.1", SMALL))
    assert site.sent == []
    assert site.session.hello().epoch == 2


def test_a_task_that_comes_twice_is_done_once(site: Site) -> None:
    site.connect()
    assert site.get("1.1")
    assert not site.get("1.1")


def test_a_closed_task_is_forgotten_whatever_the_executor_says(site: Site) -> None:
    site.connect()
    site.get("1.1")
    site.session.close("1.1")
    site.session.reply("1.1", update("1.1", SMALL))
    assert site.sent == []


def test_a_broken_task_goes_on_where_it_broke(site: Site) -> None:
    site.connect()
    incoming, payload = task("1.1", size=100)
    site.session.task(incoming)
    fill(incoming, payload, 300)
    site.session.disconnected()
    assert site.session.hello().receiving == {"1.1": 300}
    site.connect()
    with pytest.raises(ProtocolError, match="at byte 301; this site has 300 bytes"):
        site.session.payload("1.1", 301)
    rest = site.session.payload("1.1", 300)
    fill(rest, payload)
    assert site.session.complete(rest)


def test_a_new_attempt_begins_its_tasks_anew(site: Site) -> None:
    site.connect()
    incoming, payload = task("1.1", size=100)
    site.session.task(incoming)
    fill(incoming, payload, 300)
    site.connect(epoch=2)
    assert site.session.hello().receiving == {}
    with pytest.raises(ProtocolError, match="this site has nothing of it"):
        site.session.payload("1.1", 300)


def test_a_hello_says_what_the_site_is(site: Site) -> None:
    hello = site.session.hello()
    assert (hello.site, hello.kinds, hello.labels) == ("site-1", ("train",), {"region": "eu"})


def notes(number: str, step: int = 1) -> SiteNotes:
    return SiteNotes(number, (Note(5.0, {"loss": 0.5}, step),))


def test_notes_go_out_only_while_there_is_a_connection(site: Site) -> None:
    site.connect()
    site.get("1.1")
    assert site.session.tell(notes("1.1"))
    assert site.sent == [notes("1.1")]
    site.session.disconnected()
    assert not site.session.tell(notes("1.1", 2))
    site.connect(wanted=("1.1",))
    assert site.session.tell(notes("1.1", 2))
    assert site.sent == [notes("1.1", 2)]


def test_notes_of_a_task_that_nobody_waits_for_are_dropped(site: Site) -> None:
    site.connect()
    site.get("1.1")
    site.session.close("1.1")
    assert site.session.tell(notes("1.1"))
    assert site.sent == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_tasks_last_notes_go_before_its_update_whenever_that_is_sent(
    site: Site, size: int
) -> None:
    site.connect()
    site.get("1.1")
    site.session.disconnected()
    site.session.reply("1.1", update("1.1", size), [notes("1.1", 1), notes("1.1", 2)])
    for _ in range(2):
        site.connect(wanted=("1.1",))
        *first, last = site.sent
        assert first == [notes("1.1", 1), notes("1.1", 2)]
        assert isinstance(last, SiteUpdate if size == SMALL else SiteOffer)


def test_last_notes_are_not_sent_again_once_the_offer_after_them_has_arrived(site: Site) -> None:
    site.connect()
    site.get("1.1")
    site.session.reply("1.1", update("1.1", LARGE), [notes("1.1")])
    site.session.go("1.1", 0)
    site.connect(wanted=("1.1",))
    assert [type(item) for item in site.sent] == [SiteOffer]


def test_last_notes_are_forgotten_with_their_task(site: Site) -> None:
    site.connect()
    for number in ("1.1", "1.2", "1.3"):
        site.get(number)
    site.session.disconnected()
    for number in ("1.1", "1.2", "1.3"):
        site.session.reply(number, update(number, SMALL), [notes(number)])
    site.session.ack("1.1")
    site.session.close("1.2")
    site.connect(wanted=())
    assert site.sent == []
    assert site.session._noted == {}
