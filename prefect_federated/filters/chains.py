"""A job's filters, in order, at their four points."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from prefect_federated.errors import ConfigurationError, FilterFailed, UpdateRejected
from prefect_federated.filters.difference import Difference
from prefect_federated.filters.exclude import ByName
from prefect_federated.filters.own import Own
from prefect_federated.filters.passage import Filter, Passage, Point
from prefect_federated.filters.specs import ENCODINGS, FilterSpec
from prefect_federated.messages import JsonValue, Message

Value = TypeVar("Value")

SERVER_POINTS = (Point.LEAVING_SERVER, Point.ENTERING_SERVER)
SITE_POINTS = (Point.ENTERING_SITE, Point.LEAVING_SITE)

_ROWS = 64


@dataclass(frozen=True)
class _Step:
    """One filter of a chain; made of a spec when its chain is first needed."""

    at: Point
    spec: FilterSpec | None
    filter: Filter | None

    @property
    def name(self) -> str:
        if self.spec is not None:
            return self.spec.filter
        unnamed = getattr(self.filter, "__qualname__", type(self.filter).__name__)
        return str(getattr(self.filter, "name", unnamed))

    @property
    def is_encoding(self) -> bool:
        return isinstance(self.filter, ENCODINGS)

    def covers(self, kind: str) -> bool:
        return self.spec is None or self.spec.covers(kind)


class Filters:
    """The filters of a job by point, each chain in the order given.

    Encodings (cast, int8, top_k) come last where a message leaves, because what stands after them
    would see bytes instead of tensors; at the other end `decode` undoes them before the filters
    there run. A site's own tensors (own) are put in last before the executor, and taken out first
    after it, wherever the list has them.

    >>> filters = Filters.of([{"filter": "cast", "at": "leaving_server", "to": "float16"}])
    >>> filters.to_json()
    [{'filter': 'cast', 'at': 'leaving_server', 'to': 'float16'}]

    Make it once a process and job: filters with state live in it.
    """

    def __init__(self, steps: Iterable[_Step] = ()) -> None:
        self._steps = tuple(sorted(steps, key=_from_the_executor))
        for point in Point:
            _check_order(self._chain(point))

    @classmethod
    def of(
        cls,
        specs: Iterable[FilterSpec | Mapping[str, object]] = (),
        functions: Mapping[Point, Sequence[Filter]] | None = None,
        points: Iterable[Point] = tuple(Point),
    ) -> Self:
        """Makes a job's filters.

        Args:
            specs: The job's list; also as the JSON values of `to_json`.
            functions: Plain callables by point, which stand before the point's encodings. They stay
                in this process.
            points: The points that this process passes: filters with an import path are imported
                for these only.

        Raises:
            ConfigurationError: an entry is wrong; its message names the filter and the argument.
        """
        read = [
            spec if isinstance(spec, FilterSpec) else FilterSpec.model_validate(spec)
            for spec in specs
        ]
        here = frozenset(points)
        steps = []
        for spec in read:
            is_here = _is_own(spec) or not here.isdisjoint(spec.points)
            built = spec.build() if is_here else None
            steps += [_Step(point, spec, built) for point in spec.points]
        plain = [
            _Step(point, None, filter)
            for point, chain in (functions or {}).items()
            for filter in chain
        ]
        return cls(_encodings_last([*steps, *plain]) if plain else steps)

    def then(self, other: "Filters") -> "Filters":
        """Returns these filters followed by others, such as a site's own; encodings still last."""
        return Filters(_encodings_last([*self._steps, *other._steps]))

    def to_json(self) -> list[JsonValue]:
        """Returns the job's list as JSON values, as it goes to the sites.

        Raises:
            ConfigurationError: a plain callable stands at a site's point: it cannot be sent.
        """
        values: list[JsonValue] = []
        for step in self._steps:
            if step.spec is not None:
                if step.at is step.spec.points[0]:  # an entry may stand at several
                    values.append(step.spec.to_json())
            elif step.at in SITE_POINTS:
                raise ConfigurationError(
                    f"filter {step.name!r} at {step.at.value!r} is a plain function, which cannot "
                    "be sent to the sites; mark it with @message_filter and name it by its import "
                    "path, 'package.module:name'."
                )
        return values

    def has(self, point: Point, kind: str) -> bool:
        """Returns whether any filter stands at a point for a kind of site task."""
        return any(step.covers(kind) for step in self._chain(point))

    def expected(self, named: Mapping[str, Value], kind: str = "train") -> dict[str, Value]:
        """Returns what of the model's tensors an update must hold, as far as names decide.

        That is: what reaches the executor, less what its site takes out before sending (`exclude`,
        `own`).

        Args:
            named: Anything by tensor name: the model's specs, or its tensors.
            kind: The kind of site task.
        """
        left = dict(named)
        for point in (Point.LEAVING_SERVER, *SITE_POINTS):
            for step in self._chain(point):
                if isinstance(step.filter, ByName) and step.covers(kind):
                    left = step.filter.remaining(left)
        return left

    def run(self, point: Point, message: Message, passage: Passage) -> Message:
        """Returns a message as it is after a point's filters, with their rows in its report.

        The header's `filtered` gets a row [point, name, bytes before, bytes after, notes] for each.

        Raises:
            FilterFailed: a filter raised, or gave no message back.
            UpdateRejected: the same, where an update enters the server.
        """
        chain = [step for step in self._chain(point) if step.covers(passage.kind)]
        if not chain:
            return message
        is_difference = point is Point.ENTERING_SERVER and any(
            isinstance(step.filter, Difference) and step.covers(passage.kind)
            for step in self._chain(Point.LEAVING_SITE)
        )
        earlier = message.header.get("filtered")
        rows: list[JsonValue] = list(earlier[:_ROWS]) if isinstance(earlier, list) else []
        for step in chain:
            notes: dict[str, float] = {}
            here = replace(passage, point=point, is_difference=is_difference, notes=notes)
            before = message.size_bytes
            message = _passed(step, message, here)
            rows.append([point.value, step.name, before, message.size_bytes, {**notes}])
            is_difference = is_difference or isinstance(step.filter, Difference)
        return replace(message, header={**message.header, "filtered": rows})

    def _chain(self, point: Point) -> list[_Step]:
        return [step for step in self._steps if step.at is point]


def _passed(step: _Step, message: Message, passage: Passage) -> Message:
    if step.filter is None:
        raise ConfigurationError(
            f"filter {step.name!r} stands at {step.at.value!r}, which is not passed here."
        )
    try:
        result = step.filter(message, passage)
    except Exception as error:
        raise _failure(step, passage, f"{type(error).__name__}: {error}") from error
    if not isinstance(result, Message):
        raise _failure(step, passage, f"it gave a {type(result).__name__}, not a Message")
    return result


def _failure(step: _Step, passage: Passage, reason: str) -> FilterFailed | UpdateRejected:
    where = f"filter {step.name!r} at {step.at.value!r} failed in round {passage.round}"
    if step.at is Point.ENTERING_SERVER:
        return UpdateRejected(f"the update of site {passage.site!r}: {where}: {reason}.")
    return FilterFailed(f"{where}: {reason}.")


def _from_the_executor(step: _Step) -> int:
    if not isinstance(step.filter, Own):
        return 0
    return -1 if step.at is Point.LEAVING_SITE else 1


def _is_own(spec: FilterSpec) -> bool:
    return ":" not in spec.filter


def _encodings_last(steps: Iterable[_Step]) -> list[_Step]:
    return sorted(steps, key=lambda step: step.is_encoding)


def _check_order(chain: Sequence[_Step]) -> None:
    encoding = None
    for step in chain:
        if step.is_encoding:
            encoding = step
        elif encoding is not None:
            raise ConfigurationError(
                f"filter {step.name!r} stands after {encoding.name!r} at {step.at.value!r}, where "
                "it would see encoded bytes; put it before."
            )
