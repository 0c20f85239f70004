"""Which update comes next: offers, room, transfers that stall or break, late updates that are kept.

Part of the pure state machine (`exchange`): it tells sites when to send, and receives nothing.
"""

from collections.abc import Callable, Mapping

from prefect_federated.errors import FederatedError
from prefect_federated.messages import Update
from prefect_federated.transport.room import Asked, Room, Stage
from prefect_federated.transport.roster import SiteRecord
from prefect_federated.transport.signals import EAGER_BYTES, Attachment, SendGo
from prefect_federated.wire import Incoming

STALLED_S = 15.0
"""Seconds without a byte after which an update that takes room gives way to one that waits."""
_KEPT = 256  # late updates that no call has taken yet


class Deliveries:
    """The updates of one job that are on their way to the controller.

    Args:
        sites: The job's sites.
        most: Updates that may be in memory; see `Room`.
        fail: Told of an update for which there is no memory, and why.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteRecord],
        most: int,
        fail: Callable[[Asked, Attachment, str], None],
    ) -> None:
        self.room = Room(most)
        self._sites = sites
        self._fail = fail
        self._offered: dict[Asked, None] = {}  # updates that wait for room, oldest first
        self._kept: dict[Asked, None] = {}  # late updates that no call has taken yet

    def offer(self, asked: Asked, incoming: Incoming) -> None:
        """Notes that a site has an update, which waits for room."""
        self.free(asked)
        asked.stage, asked.incoming = Stage.OFFERED, incoming
        self._offered[asked] = None

    def resume(self, asked: Asked, attachment: Attachment, kept: Incoming) -> None:
        """Tells a site to go on with an update whose transfer broke."""
        asked.stage = Stage.RECEIVING
        asked.incoming = attachment.incoming[asked.task] = kept.resumed()
        attachment.send(SendGo(asked.task, asked.incoming.received))

    def grant(self) -> None:
        """Tells sites to send their updates, as far as there is room."""
        waiting = [
            asked for asked in self._offered if asked.call is not None and not asked.call.is_closed
        ]
        for asked in sorted(waiting, key=lambda asked: asked.call not in self.room.awaited):
            while not self.room.has_room(asked) and (weakest := self.room.weakest()) is not None:
                self._take_back(weakest)
            attachment = self._sites[asked.site].attachment
            if attachment is None or asked.incoming is None or not self.room.has_room(asked):
                continue
            del self._offered[asked]
            self.room.take(asked)
            asked.stage = Stage.RECEIVING
            try:
                asked.incoming.allocate()
            except FederatedError as error:
                self._fail(asked, attachment, str(error))
                return  # the settling has granted the rest
            attachment.incoming[asked.task] = asked.incoming
            attachment.send(SendGo(asked.task))

    def take_back_stalled(self, now: float) -> float | None:
        """Lets updates that wait for room take that of those that do not come on.

        Returns:
            When to look again; None where nothing waits.
        """
        if not any(asked.call is not None for asked in self._offered):
            return None
        for asked in list(self.room.held):
            is_coming = asked.incoming is not None and not asked.incoming.is_complete
            if asked.stage is Stage.RECEIVING and asked.incoming is not None and is_coming:
                received, since = asked.progress
                if asked.incoming.received != received or since == 0.0:
                    asked.progress = (asked.incoming.received, now)
                elif now - since >= STALLED_S:
                    self._take_back(asked)
                    self.grant()
        return now + STALLED_S / 3

    def keep(self, asked: Asked, reply: Update) -> Asked | None:
        """Keeps a late update for the next call; returns one that must give way to it, or None."""
        asked.reply = reply
        self.room.free(asked)
        self._kept[asked] = None
        large = [kept for kept in self._kept if kept.size_bytes > EAGER_BYTES]
        if len(large) > self.room.most or len(self._kept) > _KEPT:
            oldest = large[0] if len(large) > self.room.most else next(iter(self._kept))
            del self._kept[oldest]
            return oldest
        return None

    def adopt(self, asked: Asked) -> None:
        """Notes that a call has taken a late update, or waits for it."""
        self._kept.pop(asked, None)

    def free(self, asked: Asked) -> None:
        """Gives back an update's room; what is still to come of it is read to nowhere."""
        self._offered.pop(asked, None)
        self._kept.pop(asked, None)
        self.room.free(asked)
        self.forget(asked)
        if asked.incoming is not None and asked.stage in (Stage.RECEIVING, Stage.BROKEN):
            asked.incoming.discard()
        asked.incoming = None

    def forget(self, asked: Asked) -> None:
        """Notes that nothing more of an update comes over this connection."""
        attachment = self._sites[asked.site].attachment
        if attachment is not None:
            attachment.incoming.pop(asked.task, None)

    def _take_back(self, asked: Asked) -> None:
        """Gives an update's room to others; it is sent anew, from its beginning, after them."""
        incoming = asked.incoming
        is_here = asked.stage is Stage.RECEIVING
        self.free(asked)
        if is_here and incoming is not None:  # else its site offers it when it is back
            asked.stage, asked.incoming, asked.progress = (
                Stage.OFFERED,
                incoming.restarted(),
                (0, 0),
            )
            self._offered[asked] = None
