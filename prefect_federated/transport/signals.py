"""What a controller's side and a site's side say to each other, before it becomes bytes.

The state machines (`exchange`, `session`) send these through a sink that is handed to them. A
driver turns them into frames; the simulated network of the protocol's tests carries them as they
are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from prefect_federated.messages import JsonValue, Message, Note
from prefect_federated.wire import PROTOCOL_VERSION, Encoded, Incoming

EAGER_BYTES = 64 << 10
"""Payload up to which an update is sent unasked: an offer would cost a round trip for nothing."""


@dataclass(frozen=True, slots=True)
class Hello:
    """How a site introduces itself when it attaches.

    Args:
        site: Its name.
        kinds: Kinds of site task that it can do.
        protocol: Its protocol version.
        epoch: The highest epoch of this job that it has seen, 0 at first.
        holding: Ids of site tasks that it works on or whose update it keeps.
        labels: What the site says of itself, such as region or number of examples.
        receiving: Bytes that it has of site tasks whose transfer broke, by id.
    """

    site: str
    kinds: tuple[str, ...]
    protocol: int = PROTOCOL_VERSION
    epoch: int = 0
    holding: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    receiving: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SendTask:
    """Send this site task, its payload from `offset` on (above 0: the site has its head)."""

    id: str
    task: Encoded
    message: Message
    offset: int = 0
    is_wanted: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class SendGo:
    """Tell the site that there is room for its update: send the payload from `offset` on."""

    id: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SendAck:
    """Tell the site that its update has arrived, or why it does not count."""

    id: str
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class SendClose:
    """Tell the site that nobody waits for this task any more."""

    id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SendNotice:
    """Tell the site's people something: that it is left out, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class SendEnd:
    """Tell the site that the job is over, or (outcome "replaced") that this connection is."""

    outcome: str
    reason: str


Outgoing: TypeAlias = SendTask | SendGo | SendAck | SendClose | SendNotice | SendEnd
Sink: TypeAlias = Callable[[Outgoing], None]


@dataclass(eq=False)
class Attachment:
    """One connection of one site, from its hello until it breaks.

    Args:
        site: The site's name.
        send: Where what it is to be told goes; never blocks.
        epoch: The controller's attempt.
        wanted: Ids of what the site holds and is to keep.
        incoming: Updates that the site was told to send, by task id.
    """

    site: str
    send: Sink
    epoch: int
    wanted: tuple[str, ...] = ()
    incoming: dict[str, Incoming] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened to a site: "update_received", "site_lost" or "site_back".

    And what it says while it works: "metrics_logged" (kind, metrics, step, time) and "progressed"
    (kind, done, total, unit). Values that are not finite are the strings "nan", "inf" and "-inf";
    `dropped` says, where it is there, how many numbers before this one were too many.
    """

    name: str
    site: str
    round: int
    detail: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A result that did not count, and why."""

    site: str
    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class SiteOffer:
    """A site has an update: its head, so that the controller can say when to send the payload."""

    id: str
    update: Encoded


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """A site's update, small enough to be sent unasked."""

    id: str
    update: Encoded


@dataclass(frozen=True, slots=True)
class SitePayload:
    """An update's payload from `offset` on, as the controller has asked."""

    id: str
    update: Encoded
    offset: int = 0
    is_wanted: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class SiteNotes:
    """What a site says while it works on a task.

    Args:
        id: The task's id.
        notes: The notes, oldest first.
        dropped: Numbers that were too many, and were dropped before these.
    """

    id: str
    notes: tuple[Note, ...]
    dropped: int = 0

    @property
    def points(self) -> int:
        """Numbers in the notes."""
        return sum(note.points for note in self.notes)


FromSite: TypeAlias = SiteOffer | SiteUpdate | SitePayload | SiteNotes
