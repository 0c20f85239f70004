"""Tensors that each site has for itself: they never leave it, and none comes in their place.

What is kept lies in the site's state folder of the job, by round, and is written before the update
leaves; so it survives the process, and a round that is done again begins with what was there before
that round.

Source: Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", section 3: the sites' batch-norm layers are left out of the averaging.
"""

import logging
import zlib
from typing import ClassVar

from prefect_federated.filters.exclude import ByName
from prefect_federated.filters.passage import Passage, Point
from prefect_federated.kept import Kept
from prefect_federated.messages import Message, Tensor

_log = logging.getLogger("prefect_federated.site")

_MEASURES = "evaluate"  # the kind of site task that looks at what the round's training has left
_CONTROL = "control/"  # begins the names of SCAFFOLD's control variates
_EVER = 1 << 62


class Own(ByName):
    """Keeps tensors at their site by their names' patterns, such as `*.bn.*`: FedBN.

    One entry stands at both points of a site, nearest to the executor. An update leaves without
    these tensors, and the executor gets the site's own in place of the server's: for "evaluate"
    those after the round, for all else those from before it. Until a site has trained, it has the
    server's first ones; the server's stay what they were.

    List all that belongs to a batch norm: weight, bias, and the running statistics.
    """

    name: ClassVar[str] = "own"

    def __call__(self, message: Message, passage: Passage) -> Message:
        """Returns a task's message with the site's own tensors, an update's without them.

        Raises:
            ValueError: no tensor has such a name, or the tensors are SCAFFOLD's.
            SnapshotCorrupt: what was kept cannot be read.
            OSError: it cannot be written.
        """
        if passage.state is None:
            raise ValueError("there is no folder to keep the site's own tensors in")
        if any(name.startswith(_CONTROL) for name in message.tensors):
            raise ValueError(
                "SCAFFOLD corrects every parameter by what all sites do; none can be a site's own"
            )
        digest = zlib.crc32(repr((self.names, self.keep)).encode())  # each entry has its own
        kept = Kept(passage.state, f"own-{digest:08x}")
        if passage.point is Point.ENTERING_SITE:
            return self._entering(message, passage, kept)
        return self._leaving(message, passage, kept)

    def _entering(self, message: Message, passage: Passage, kept: Kept) -> Message:
        tensors = {**message.tensors, **_own_before(_first_unknown(passage), kept)}
        return Message(message.header, tensors, message.blobs)

    def _leaving(self, message: Message, passage: Passage, kept: Kept) -> Message:
        own = {name: each for name, each in message.tensors.items() if self.takes(name)}
        if own and passage.kind != _MEASURES:
            # Outside rounds: in the place of the newest.
            round = passage.round or kept.newest_before(_EVER) or 0
            kept.write(round, own, after=kept.newest_before(round))
        elif not own and passage.reference and not any(map(self.takes, passage.reference)):
            known = ", ".join(list(passage.reference)[:10])
            raise ValueError(
                f"no tensor of the model is named by {list(self.names)}; it has {known}"
            )
        return self.without(message)


def _first_unknown(passage: Passage) -> int:
    """Returns the first round that a task must not have seen the end of."""
    if passage.round == 0:
        return _EVER
    return passage.round + 1 if passage.kind == _MEASURES else passage.round


def _own_before(round: int, kept: Kept) -> dict[str, Tensor]:
    """Returns the tensors of the newest round before this; without one, the newest there are."""
    newest = kept.newest_before(round)
    if newest is None and (newest := kept.newest_before(_EVER)) is not None:
        _log.warning("a site's own tensors from before round %d are gone; newer ones serve", round)
    return {} if newest is None else kept.read(newest)
