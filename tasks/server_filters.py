"""A job's filters at the server's two points, and the undoing of what sites encoded."""

import threading
from collections.abc import Mapping, Sequence

from prefect_federated.errors import UpdateRejected
from prefect_federated.filters import (
    SERVER_POINTS,
    Filter,
    Filters,
    FilterSpec,
    Passage,
    Point,
    as_received,
    decode,
    decoded_specs,
)
from prefect_federated.messages import Message, Tensors
from prefect_federated.settings import Settings
from prefect_federated.wire import Incoming, TensorSpec, specs_of

_REFERENCES = 8  # calls whose model is kept for late updates, the newest,
_REFERENCE_BYTES = 1 << 30  # of them as many as this holds, and the newest in any case
_SITES_OWN = frozenset({"difference", "exclude", "clip"})  # leave nothing to be undone here


class ServerFilters:
    """What messages pass when they leave and enter the server.

    Args:
        specs: The job's filters.
        functions: Plain callables by point, for the server's points.

    Raises:
        ConfigurationError: a filter is not what it must be.
    """

    def __init__(
        self,
        specs: Sequence[FilterSpec],
        functions: Mapping[Point, Sequence[Filter]] | None = None,
    ) -> None:
        self._filters = Filters.of(specs, functions, points=SERVER_POINTS)
        self._filters.to_json()  # complains of functions that cannot be sent to the sites
        self._limits = Settings().limits
        self._undone = [
            spec for spec in specs
            if spec.at is Point.LEAVING_SITE and spec.filter not in _SITES_OWN
        ]  # fmt: skip
        self._references: dict[str, Tensors] = {}
        self._decoded: tuple[str, Tensors] | None = None
        self._lock = threading.Lock()

    def leaving(self, message: Message, kind: str, round: int) -> Message:
        """Returns a message for the sites as it leaves the server.

        Raises:
            FilterFailed: a filter raised, or gave no message back.
        """
        passage = Passage(Point.LEAVING_SERVER, kind=kind, round=round)
        return self._filters.run(Point.LEAVING_SERVER, message, passage)

    def expected(self, sent: Message, kind: str) -> dict[str, TensorSpec]:
        """Returns what the tensors of an update must be, once it has been decoded.

        Args:
            sent: The message as it left the server.
            kind: The site task.
        """
        received = decoded_specs(sent.header, specs_of(sent.tensors), self._limits)
        return self._filters.expected(received, kind)

    def note_sent(self, call: str, kind: str, sent: Message, late: float) -> None:
        """Keeps a call's model, where updates may come after its end and are changes of it.

        Kept are the models of the newest 8 such calls, of them as many as 1 GiB holds, the newest
        one in any case. An update that comes later still is refused.

        Args:
            call: The call's id.
            kind: The site task.
            sent: The message as it left the server.
            late: The factor on late updates' weights; 0: they do not count, nothing is kept.
        """
        if late == 0 or not sent.tensors or not self._needs_reference(kind):
            return
        model = as_received(sent, self._limits).tensors
        with self._lock:
            self._references[call] = model
            room = _REFERENCE_BYTES - _size(model)
            newest = list(self._references)[:-1][::-1]
            for place, older in enumerate(newest, start=1):
                room -= _size(self._references[older])
                if place >= _REFERENCES or room < 0:
                    del self._references[older]

    def _needs_reference(self, kind: str) -> bool:
        is_undone = any(spec.covers(kind) for spec in self._undone)
        return is_undone or self._filters.has(Point.ENTERING_SERVER, kind)

    def announced(self, incoming: Incoming) -> Mapping[str, TensorSpec]:
        """Returns what an update's tensors will be once it has been decoded, from its head."""
        return decoded_specs(incoming.header, incoming.specs, self._limits)

    def entering(self, site: str, update: Message, asked: Message) -> Message:
        """Returns a site's update as it enters the server: decoded, and through the filters.

        Args:
            site: The site.
            update: What has arrived.
            asked: What the site was asked, or what the call asks that takes its late update.

        Raises:
            ProtocolError: it is not encoded as it says.
            UpdateRejected: a filter raised or gave no message back, or the model that the update
                is a change of is gone.
        """
        kind = str(asked.header.get("kind", "train"))
        if not update.header.get("encodings") and not self._filters.has(
            Point.ENTERING_SERVER, kind
        ):
            return update
        round = asked.header.get("round")
        passage = Passage(
            Point.ENTERING_SERVER,
            site=site,
            kind=kind,
            round=round if isinstance(round, int) else 0,
            reference=self._reference(str(update.header.get("id")), asked),
        )
        decoded = decode(update, passage, self._limits)
        return self._filters.run(Point.ENTERING_SERVER, decoded, passage)

    def _reference(self, call: str, asked: Message) -> Tensors | None:
        """Returns the model of a site task as its sites have it; None if it has none."""
        with self._lock:
            if call in self._references:
                return self._references[call]
            if asked.header.get("id") != call:
                raise UpdateRejected(
                    f"the model that it is a change of is gone: task {call[:40]!r} ended too long "
                    "ago, or late updates do not count. Ask with a longer timeout_s or grace_s."
                )
            if not asked.header.get("encodings"):
                return asked.tensors or None
            if self._decoded is None or self._decoded[0] != call:  # once for all sites of a call
                self._decoded = call, as_received(asked, self._limits).tensors
            return self._decoded[1]


def _size(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())
