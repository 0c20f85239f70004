"""How updates of virtual sites get into the hub of their own process.

Who has an update waits until there is room for it, so that only a few are in memory at once; but
not while the controller waits for another call, whose site tasks could then not be done. Until
there is room for what was left so, only site tasks that the controller waits for may begin.
"""

import queue
import threading
from dataclasses import dataclass

from prefect_federated.messages import Message
from prefect_federated.transport.hub import Hub
from prefect_federated.transport.signals import (
    Attachment,
    Outgoing,
    SendAck,
    SendClose,
    SendEnd,
    SendGo,
)
from prefect_federated.transport.updates import LocalMessage


@dataclass
class _Offered:
    attachment: Attachment
    incoming: LocalMessage
    is_granted: bool = False
    is_over: bool = False
    is_left: bool = False  # nobody waits with it for room any more


class Handover:
    """Offers updates to a hub and delivers them when there is room. Use as a context manager.

    Whoever attaches a site passes what the hub sends to it on to `hear`.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._offered: dict[tuple[str, str], _Offered] = {}
        self._deliveries: queue.SimpleQueue[_Offered | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="deliveries", daemon=True)
        self._left: set[tuple[str, str]] = set()  # updates without room that nobody waits with
        self._is_ended = False

    def __enter__(self) -> "Handover":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deliveries.put(None)
        self._thread.join()

    def hear(self, site: str, item: Outgoing) -> None:
        """Takes what the hub tells a site; the hub holds its lock meanwhile."""
        if isinstance(item, SendEnd):
            self._is_ended = True
        elif isinstance(item, SendGo | SendAck | SendClose):
            offered = self._offered.get((site, item.id))
            if offered is None:
                return
            self._left.discard((site, item.id))
            if not isinstance(item, SendGo):
                offered.is_over = True
                if offered.is_left:
                    del self._offered[site, item.id]
            elif offered.is_left:
                self._deliveries.put(offered)
            else:
                offered.is_granted = True

    @property
    def is_full(self) -> bool:
        """Whether an update is in memory for which there is no room; ask with the hub's lock."""
        return bool(self._left) and not self._is_ended

    def may_begin(self, site: str) -> bool:
        """Whether the site may begin a task, whose update will be in memory too; with the lock.

        While there is no room, it may only if the controller waits for this site: for an answer to
        this task, or to one that the site can be given only after this one.
        """
        return not self.is_full or any(site in record.waiting for record in self._hub.awaited)

    def hand_in(self, attachment: Attachment, message: Message) -> None:
        """Offers an update, or a failure, and delivers it as soon as there is room."""
        key = attachment.site, str(message.header["id"])
        offered = _Offered(attachment, LocalMessage.of(message))
        with self._hub.changed:
            self._offered[key] = offered
        self._hub.offer(attachment, offered.incoming, at_once=False)
        with self._hub.changed:
            while not (offered.is_granted or offered.is_over or self._is_ended):
                if self._is_another_awaited(key[1]):
                    offered.is_left = True
                    self._left.add(key)
                    return
                self._hub.changed.wait()
        if offered.is_granted:
            self._hub.deliver(attachment, offered.incoming)
        with self._hub.changed:
            self._offered.pop(key, None)

    def _is_another_awaited(self, task: str) -> bool:
        awaited = self._hub.awaited
        return bool(awaited) and all(record.id != task for record in awaited)

    def _deliver(self) -> None:
        while (offered := self._deliveries.get()) is not None:
            self._hub.deliver(offered.attachment, offered.incoming)
