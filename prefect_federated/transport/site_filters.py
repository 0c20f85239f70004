"""Between a site's connection and its executor: decoding and filters, on the way in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from prefect_federated.executors import ReceivedTask, Site
from prefect_federated.filters import SITE_POINTS, Filters, Passage, Point, decode
from prefect_federated.messages import JsonValue, Message, Tensor
from prefect_federated.wire import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Visit:
    """What is to be known of a site task when its update leaves the site.

    Args:
        passage: What the filters are told then.
        rows: What the filters did to the task on its way in, for the round's report.
    """

    passage: Passage
    rows: JsonValue


class SiteFilters:
    """The filters at a site's two points. One object serves all virtual sites of a process.

    Args:
        specs: The job's filters, as JSON.
        limits: What a message may hold at most, once it is decoded.

    Raises:
        ConfigurationError: a filter is not what it must be, or does not import here.
    """

    def __init__(self, specs: Sequence[JsonValue], limits: Limits = DEFAULT_LIMITS) -> None:
        read = cast(Sequence[Mapping[str, object]], specs)
        self._filters = Filters.of(read, points=SITE_POINTS)
        self._limits = limits

    def entering(self, site: Site, task: Message) -> tuple[ReceivedTask, Visit]:
        """Returns a site task as the executor gets it, and what `leaving` has to know of it.

        Raises:
            FederatedError: the message or a filter is not what it must be.
        """
        header = task.header
        kind, number, config = header.get("kind"), header.get("round"), header.get("config")
        round = number if isinstance(number, int) else 0
        passage = Passage(Point.ENTERING_SITE, site.name, str(kind), round, site.state)
        decoded = decode(task, passage, self._limits)
        entered = self._filters.run(Point.ENTERING_SITE, decoded, passage)
        received = ReceivedTask(
            id=str(header["id"]),
            kind=str(kind),
            round=round,
            model={name: _read_only(array) for name, array in entered.tensors.items()},
            config=config if isinstance(config, dict) else {},
        )
        leaving = replace(passage, point=Point.LEAVING_SITE, reference=decoded.tensors)
        return received, Visit(leaving, entered.header.get("filtered", []))

    def leaving(self, message: Message, visit: Visit) -> Message:
        """Returns an update as it leaves the site.

        Raises:
            FederatedError: a filter failed.
        """
        if visit.rows:
            message = replace(message, header={**message.header, "filtered": visit.rows})
        return self._filters.run(Point.LEAVING_SITE, message, visit.passage)


def _read_only(array: Tensor) -> Tensor:
    view = array.view()
    view.flags.writeable = False
    return view
